#!/bin/bash
# Goal: `make demo` shows what it says it shows. Method: its script runs to the end, and what it prints is held against the
# questions of the demo clips, against itself, and against the engine asked once more.
. tests/cli/lib.sh
tools/demo.sh "$bin" >"$dir/out" 2>"$dir/err"
is "exit status" $? 0
is "nothing on standard error" "$(cat "$dir/err")" ""
n=$(grep -cE '^ +(none|omnidrop)  +[-+] |^truth  [-+] ' "$dir/out")
right=$(grep -cE '^ +(none|omnidrop)  +\+ |^truth  \+ ' "$dir/out")
is "it counts what it marks" "$(grep -oE '[0-9]+ of [0-9]+ answers equal the truth' "$dir/out")" "$right of $n answers equal the truth"
is "four questions both ways, and a transcript" "$n" 9
film=$(sed -nE 's/^([^ ]*\.mp4): .*/\1/p' "$dir/out")
kinds=$(while IFS= read -r q; do
    grep -F "\"video\": \"${film##*/}\"" $demo/questions.jsonl | grep -F "\"question\": \"$q\"" | head -1 | "$json" kind
done < <(grep -B1 '^ *truth     ' "$dir/out" | sed -nE 's/^  ([^ -].*)/\1/p'))
check "its questions need ear, eye, and both" bash -c "grep -qx transcribe <<<'$kinds' && grep -qx word_while <<<'$kinds' && grep -qx shape_while <<<'$kinds'"
# the first question, asked once more: an answer that equals the truth bears +, another -
q=$(grep -B1 -m1 '^ *truth     ' "$dir/out" | sed -n '1s/^  //p') truth=$(sed -nE '/^ *truth     /{s///p;q}' "$dir/out")
said=$("$bin" chat -q --video "$film" -p "$q" --policy omnidrop --retention 0.3)
is "what is shown is what the engine says" "$(sed -nE '/^ *omnidrop  +[-+] /{s/^ *omnidrop  +//p;q}' "$dir/out")" \
    "$([[ $said == "$truth" ]] && echo +  || echo -) $said"
layers=$("$bin" inspect model --json | "$json" text.layers)
is "a line for each layer" "$(grep -cE '^ +[0-9]+ +[0-9]+ +[0-9]+ +[0-9]+ +[0-9]+$' "$dir/out")" "$layers"
check "the totals are their sums, and pruning saves pages" awk '
    /^ +[0-9]+ +[0-9]+ +[0-9]+ +[0-9]+ +[0-9]+$/ { for (i = 2; i <= 5; i++) s[i] += $i }
    /^ +total / { for (i = 2; i <= 5; i++) if ($i != s[i]) exit 1; found = $3 < 0.31 * $2 && $5 < $4 } END { exit !found }' "$dir/out"
exit $bad
