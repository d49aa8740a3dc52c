#!/bin/bash
# Goal: `omnidrop batch` answers every line of a file once, with the words that chat gives, whatever ends it in between,
# and says by its exit code what happened. Method: the bundled model on its demo clips, a model of random weights for
# long work; the program is killed with SIGKILL again and again and resumed.
. "$(dirname "$0")/lib.sh"

# line ID BODY [URL]
line() { printf '{"custom_id":"%s","method":"POST","url":"%s","body":%s}\n' "$1" "${3:-/v1/chat/completions}" "$2"; }
# asks KIND FILE QUESTION: a body
asks() { printf '{"messages":[{"role":"user","content":[{"type":"%s_url","%s_url":{"url":"%s"}},{"type":"text","text":"%s"}]}]}' "$1" "$1" "$2" "$3"; }
# content FILE ID: the answer of a line
content() { grep "\"custom_id\":\"$2\"" "$1" | sed -E 's/.*"content":"([^"]*)".*/\1/'; }
# values FILE PATH: of every line; fails where one is no JSON or lacks it
values() { local text; while IFS= read -r text; do "$json" "$2" <<<"${text//\\u0000/}" || return 1; done <"$1"; }
# ids FILE...: custom_ids, sorted
ids() { sed -E 's/.*"custom_id":"([^"]*)".*/\1/' "$@" | sort; }

# --- the words of chat, with media beside the input
mkdir "$dir/in"
cp $demo/speech000.wav $demo/av000.mp4 $demo/image000.png "$dir/in"
{
    line speech "$(asks audio speech000.wav 'Transcribe the speech.')"
    line film "$(asks video file:av000.mp4 'Transcribe the speech.')"
    line picture "$(asks image "file://$dir/in/image000.png" 'What is shown?')"
    line inline "$(asks audio "data:audio/wav;base64,$(base64 -w0 $demo/speech000.wav)" 'Transcribe the speech.')"
    line text '{"messages":[{"role":"user","content":"Say something."}],"model":"a-name"}'
    line raw '{"prompt":"red","max_tokens":4}' /v1/completions
    line heard '{"file_url":"speech000.wav","language":"en"}' /v1/audio/transcriptions
} >"$dir/in/qa.jsonl"
exits "a file of questions" 0 '7 lines: 7 answered' "$bin" batch -i "$dir/in/qa.jsonl" -o "$dir/out.jsonl" --served-model-name a-name
is "every line is answered" "$(ids "$dir/out.jsonl" | tr '\n' ' ')" "film heard inline picture raw speech text "
is "sound: the words of chat" "$(content "$dir/out.jsonl" speech)" "$("$bin" chat -q --audio $demo/speech000.wav -p 'Transcribe the speech.')"
is "film: the words of chat" "$(content "$dir/out.jsonl" film)" "$("$bin" chat -q --video $demo/av000.mp4 -p 'Transcribe the speech.')"
is "picture: the words of chat" "$(content "$dir/out.jsonl" picture)" "$("$bin" chat -q --image $demo/image000.png -p 'What is shown?')"
is "bytes in the line: as the file" "$(content "$dir/out.jsonl" inline)" "$(content "$dir/out.jsonl" speech)"
is "a transcription: the words of transcribe" "$(grep '"custom_id":"heard"' "$dir/out.jsonl" | sed -E 's/.*"text":"([^"]*)".*/\1/')" \
    "$("$bin" transcribe -q -l en $demo/speech000.wav | tr '\n' ' ' | sed 's/ $//')"
check "every line is JSON with a request id" values "$dir/out.jsonl" response.request_id
is "nothing but results is left behind" "$(ls "$dir" | tr '\n' ' ')" "check err in out.jsonl stdout "
exits "all is done: a resume does nothing" 0 'answered already' "$bin" batch --resume -i "$dir/in/qa.jsonl" -o "$dir/out.jsonl"

# --- lines that fail
{
    line good '{"messages":[{"role":"user","content":"Say something."}]}'
    line hot '{"messages":[{"role":"user","content":"Say something."}],"temperature":3}'
    line gone "$(asks audio nothere.wav 'What?')"
    line fetched "$(asks audio http://127.0.0.1:1/x.wav 'What?')"
    line streamed '{"messages":[{"role":"user","content":"x"}],"stream":true}'
    line nomedium "$(asks audio mixed.jsonl 'What?')"
} >"$dir/in/mixed.jsonl"
exits "failed lines: exit 5, named on stderr" 5 'hot: 400 invalid_value' \
    "$bin" batch -i "$dir/in/mixed.jsonl" -o "$dir/mixed.out" --error-file "$dir/mixed.err"
is "the good one is in the output" "$(ids "$dir/mixed.out")" "good"
is "the others are in the error file" "$(ids "$dir/mixed.err" | tr '\n' ' ')" "fetched gone hot nomedium streamed "
for want in 'hot.*"code":"invalid_value"' 'gone.*"code":"media_path_not_allowed"' 'fetched.*"code":"media_url_not_allowed"' \
    'streamed.*"param":"stream"' 'nomedium.*"code":"(unsupported_media|media_decode_failed)"'; do
    check "error file: $want" grep -qE "\"custom_id\":\"$want" "$dir/mixed.err"
done
exits "the failed ones run again with --resume" 5 '1 answered \(1 of them before\), 5 failed' \
    "$bin" batch --resume -i "$dir/in/mixed.jsonl" -o "$dir/mixed.out" --error-file "$dir/mixed.err"
is "and stand there once" "$(ids "$dir/mixed.err" | wc -l)" 5
exits "--fail-fast ends early" 5 'ended after a line failed' \
    "$bin" batch -i "$dir/in/mixed.jsonl" -o "$dir/fast.out" --fail-fast --max-concurrency 1
check "--fail-fast: not all lines ran" test "$(wc -l <"$dir/fast.out")" -lt 6

# --- what is refused before any model is loaded
refuses "no input" 3 'nothere' "$bin" batch -m /nonexistent -i "$dir/nothere" -o "$dir/x"
refuses "no -o" 2 '\-o is missing' "$bin" batch -m /nonexistent -i "$dir/in/qa.jsonl"
refuses "an output that is there" 2 '\-\-resume goes on' "$bin" batch -m /nonexistent -i "$dir/in/qa.jsonl" -o "$dir/out.jsonl"
refuses "the input as output" 2 'is the input' "$bin" batch -m /nonexistent -i "$dir/in/qa.jsonl" -o "$dir/in/qa.jsonl" -y
refuses "a device as output" 2 'no regular file' "$bin" batch -m /nonexistent -i "$dir/in/qa.jsonl" -o /dev/null
refuses "--endpoint that is none" 2 '/v1/completions' "$bin" batch -m /nonexistent -i "$dir/in/qa.jsonl" -o "$dir/x" --endpoint /v2
refuses "lines of another endpoint" 3 'line 1' "$bin" batch -m /nonexistent -i "$dir/in/qa.jsonl" -o "$dir/x" --endpoint /v1/completions
for bad_line in 'nonsense' '[]' '{"custom_id":"a"}' "$(line a '[]')" "$(line a '{}' /v1/embeddings)"; do
    printf '%s\n%s\n' "$(line first '{}')" "$bad_line" >"$dir/bad.jsonl"
    refuses "line 2: $bad_line" 3 'line 2: ' "$bin" batch -m /nonexistent -i "$dir/bad.jsonl" -o "$dir/x"
done
{ line twice '{}'; line twice '{}'; } >"$dir/bad.jsonl"
refuses "a custom_id twice" 3 'line 2: .*stands in line 1 already' "$bin" batch -m /nonexistent -i "$dir/bad.jsonl" -o "$dir/x"
refuses "a device as input" 3 'no regular file' "$bin" batch -m /nonexistent -i /dev/null -o "$dir/x"
: >"$dir/empty"
refuses "an empty file" 3 'no line' "$bin" batch -m /nonexistent -i "$dir/empty" -o "$dir/x"
check "nothing was made" test ! -e "$dir/x"
exits "a model that cannot be loaded" 4 '' "$bin" batch -m /nonexistent -i "$dir/in/qa.jsonl" -o "$dir/x"

# --- killed and resumed
n=120
for ((i = 0; i < n; i++)); do
    line "id-$i" "{\"messages\":[{\"role\":\"user\",\"content\":\"Question $i\"}],\"max_tokens\":$((200 + i % 5 * 100)),\"ignore_eos\":true}"
done >"$dir/long.jsonl"
batch=("$bin" batch -q -m "$random" --resume -i "$dir/long.jsonl" -o "$dir/long.out")
killed=0; lost=""
# Four at once, so that no machine is fast enough to end the work between two looks at it.
for ((round = 0; round < 6; round++)); do
    before=$(wc -l 2>/dev/null <"$dir/long.out" || echo 0)
    cp "$dir/long.out" "$dir/long.before" 2>/dev/null || : >"$dir/long.before"
    (( before < n / 2 )) || break
    "${batch[@]}" --max-concurrency 4 >/dev/null 2>&1 & pid=$!
    more() { (( $(wc -l 2>/dev/null <"$dir/long.out" || echo 0) > before + 2 )) || ! kill -0 $pid 2>/dev/null; }
    wait_for more
    kill -KILL $pid 2>/dev/null && killed=$((killed + 1))
    wait $pid 2>/dev/null
    # What was finished before is still there, byte for byte, so it did not run again.
    head -n "$before" "$dir/long.out" | cmp -s - <(head -n "$before" "$dir/long.before") || lost+="round $round "
done
if (( killed >= 3 )); then ok "killed $killed times"; else not_ok "killed only $killed times"; fi
is "finished lines stay through every kill" "$lost" ""
check "there is something left to do" test "$(wc -l <"$dir/long.out")" -lt $n
printf '{"id":"batch_req_torn","custom_id":"id-' >>"$dir/long.out"
check "the last resume" "${batch[@]}"
is "no line is lost, none is there twice" "$(ids "$dir/long.out")" "$(ids "$dir/long.jsonl")"
is "every line is JSON" "$(values "$dir/long.out" custom_id | wc -l)" "$n"
"$bin" batch -q -m "$random" -i "$dir/long.jsonl" -o "$dir/whole.out"
texts() { sed -E 's/.*"custom_id":"([^"]*)".*"content":("([^"\\]|\\.)*").*/\1 \2/' "$1" | sort; }
is "the same answers as in one go" "$(texts "$dir/long.out")" "$(texts "$dir/whole.out")"
exits "--progress json" 0 '"event":"progress".*"done":[0-9]+,"total":120.*"eta_s":' \
    "$bin" batch --progress json -m "$random" -i "$dir/long.jsonl" -o "$dir/progress.out"

# --- another input, another run, a wish to end
for ((i = 0; i < 40; i++)); do
    line "id-$i" "{\"messages\":[{\"role\":\"user\",\"content\":\"Question $i\"}],\"max_tokens\":600,\"ignore_eos\":true}"
done >"$dir/slow.jsonl"
slow=("$bin" batch -q -m "$random" --resume -i "$dir/slow.jsonl" -o "$dir/slow.out" --max-concurrency 1)
some() { [[ $(wc -l 2>/dev/null <"$dir/slow.out") -ge $1 ]]; }
"${slow[@]}" >/dev/null 2>&1 & pid=$!
wait_for some 1
exits "a second run of the same output" 2 'in use by another run' "${slow[@]}"
kill -INT $pid; wait $pid; got=$?
is "SIGINT: the exit code" "$got" 130
check "SIGINT: only whole lines" values "$dir/slow.out" custom_id
have=$(wc -l <"$dir/slow.out")
check "SIGINT: the line that ran was finished, no other was begun" test "$have" -ge 1 -a "$have" -lt 40
{ cat "$dir/slow.jsonl"; line more '{}'; } >"$dir/changed.jsonl"
exits "a changed input is refused" 2 'changed since' "$bin" batch -q --resume -i "$dir/changed.jsonl" -o "$dir/slow.out"
is "and nothing was touched" "$(wc -l <"$dir/slow.out")" "$have"
"${slow[@]}" >/dev/null 2>&1 & pid=$!
wait_for some $((have + 1))
kill -TERM $pid; kill -TERM $pid; wait $pid; got=$?
is "SIGTERM, twice: the exit code" "$got" 143
check "SIGTERM: only whole lines" values "$dir/slow.out" custom_id
check "and the resume after it" "$bin" batch -q -m "$random" --resume -i "$dir/slow.jsonl" -o "$dir/slow.out"
is "no line lost, none twice" "$(ids "$dir/slow.out")" "$(ids "$dir/slow.jsonl")"
exit $bad
