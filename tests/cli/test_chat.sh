#!/bin/bash
# Goal: `omnidrop chat` answers as the reference does, whatever the way of asking, and ends as documented.
# Method: the bundled model on its demo clips; counts are held against inspect; signals and closed pipes at work.
. tests/cli/lib.sh
endless="-m $random --max-tokens 30000 --frequency-penalty -2 -p x"
ask() { "$bin" chat -q "$@" </dev/null; }
film="--video $demo/av000.mp4"

# --- every stored question, in one conversation: the answers of the reference
while IFS= read -r line; do
    file=$(sed -nE 's/.*"(audio|video|image)": "([^"]*)".*/\/\1 '"${demo//\//\\/}"'\/\2/p' <<<"$line")
    printf '/reset\n%s\n%s\n' "$file" "$(sed -E 's/.*"question": "([^"]*)".*/\1/' <<<"$line")"
done <$demo/answers.jsonl >"$dir/questions"
sed -E 's/.*"model_says": "([^"]*)".*/\1/' $demo/answers.jsonl >"$dir/wanted"
"$bin" chat <"$dir/questions" >"$dir/said" 2>"$dir/err"
is "a conversation ends well" $? 0
is "the $(wc -l <"$dir/wanted") stored questions: the reference's answers" "$(diff "$dir/wanted" "$dir/said")" ""
is "the model that nobody named is named, once" "$(grep -c 'omni-tiny' "$dir/err") $(wc -l <"$dir/err")" "1 1"

# --- one question
is "text" "$(ask -p 'What is four plus four?')" eight
is "a picture" "$(ask --image $demo/image001.png -p 'What is shown?')" "a green cross and an orange cross"
is "a sound" "$(ask --audio $demo/phrase000.wav -p 'What is said?')" "turn four"
is "a film" "$(ask --video $demo/video000.mp4 -p 'What is purple?')" circle
is "a film that is heard" "$(ask $film -p 'Transcribe the speech.')" "zero bird then"
is "a film that is not heard has fewer tokens" \
    "$(ask $film --no-audio-in-video --json -p 'What colour is the star?' | "$json" usage.prompt_tokens text | tr '\n' ' ')" "99 red "
is "--no-stream: the same text" "$(ask $film --no-stream -p 'Transcribe the speech.')" "zero bird then"
is "the same on one thread" "$(ask -t 1 $film -p 'Transcribe the speech.')" "zero bird then"
is "-p @FILE" "$(printf 'What is four plus four?\r\n\n' >"$dir/q"; ask -p "@$dir/q")" eight
is "-p -" "$(echo 'What is four plus four?' | "$bin" chat -q -p -)" eight
is "words of a prompt that look like an option" "$(ask --prompt=--video --json | "$json" finish_reason)" stop

# --- several media in one question: their order counts
a=$(ask --json --max-tokens 8 --temperature 1 --seed 7 -m $random --image $demo/image001.png --audio $demo/phrase000.wav -p x)
b=$(ask --json --max-tokens 8 --temperature 1 --seed 7 -m $random --audio $demo/phrase000.wav --image $demo/image001.png -p x)
is "the order of media changes no count" "$("$json" usage <<<"$a")" "$("$json" usage <<<"$b")"
if [[ $a != "$b" ]]; then ok "but the prompt"; else not_ok "but the prompt" "$a"; fi
c=$(printf '/image %s\n/audio  %s\nx\n' $demo/image001.png $demo/phrase000.wav |
    "$bin" chat -q --json --max-tokens 8 --temperature 1 --seed 7 -m $random)
is "a conversation keeps it too" "$c" "$a"
ask --json --return-pruning -p 'What is said?' $film --image $demo/image001.png --audio $demo/phrase000.wav $film >"$dir/j"
said=$("$bin" inspect media --json --exact $demo/phrase000.wav | "$json" audio.tokens)
is "a film twice, a picture and a sound" "$("$json" omnidrop.av_tokens_in finish_reason <"$dir/j")" \
    "{\"audio\":$((150 + 150 + said)),\"video\":144,\"image\":20}"$'\n'stop

# --- turns
printf '/video %s\nTranscribe the speech.\nWhat colour is the star?\n/reset\nHello!\n/quit\nHello!\n' $demo/av000.mp4 >"$dir/t"
is "turns, /reset and /quit" "$("$bin" chat -q <"$dir/t" | tr '\n' '|')" "zero bird then|red|Hello! Show me shapes or say some words.|"
is "a last line without its end" "$(printf 'What is four plus four?' | "$bin" chat -q)" eight
is "empty lines are no questions" "$(printf '\n\r\nHello!\n\n' | "$bin" chat -q | wc -l)" 1
is "media of the command line go before the first question" "$(echo 'What is said?' | "$bin" chat -q --audio $demo/phrase000.wav)" "turn four"
n1=$(printf 'Hello!\n' | "$bin" chat -q --json | "$json" usage.prompt_tokens)
n2=$(printf 'Hello!\nHello!\n' | "$bin" chat -q --json | tail -n 1 | "$json" usage.prompt_tokens)
if (( n2 > 2 * n1 - 20 && n2 > n1 + 10 )); then ok "a second turn holds the first"; else not_ok "a second turn holds the first" "$n1 $n2"; fi
is "an answer a line, each of them JSON" "$(printf 'Hello!\nHello!\n' | "$bin" chat -q --json | while read -r l; do "$json" finish_reason <<<"$l"; done | tr '\n' ' ')" "stop stop "
is "no input, no answer" "$("$bin" chat </dev/null 2>/dev/null | wc -c)" 0

# --- JSON
ask --json $film -p 'Transcribe the speech.' >"$dir/j"
is "JSON: text, reason, counts" "$("$json" model text finish_reason usage <"$dir/j" | tr '\n' '|')" \
    'omni-tiny|zero bird then|stop|{"prompt_tokens":249,"completion_tokens":4,"total_tokens":253}|'
is "JSON: nothing of pruning unasked" "$("$json" omnidrop <"$dir/j" 2>&1)" 'json_get: nothing at "omnidrop"'
is "length" "$(ask --json --max-tokens 2 -p 'Repeat: nine open moon car' | "$json" finish_reason usage.completion_tokens | tr '\n' ' ')" "length 2 "
is "control characters and quotes survive" "$(ask --json -m $random --max-tokens 60 --temperature 2 -p 'say "x"' | "$json" finish_reason)" length

# --- --return-pruning and inspect schedule agree
film_pages=192        # 12 layers of 16
# agrees WHAT "MEDIA OPTIONS" "POLICY OPTIONS" FILE
agrees() {
    local what=$1 given=$2 policy=$3 file=$4 audio grid steps=0 each=1 text av
    # shellcheck disable=SC2086
    ask --json --return-pruning $given $policy -p 'What colour is the star?' >"$dir/run"
    "$bin" inspect media --json --exact --no-windows "$file" >"$dir/media"
    audio=$("$json" audio.tokens <"$dir/media" 2>/dev/null) || audio=0
    if grid=$("$json" video.grid <"$dir/media" 2>/dev/null); then
        IFS=', ' read -r steps h w <<<"$(tr -d '[]' <<<"$grid")"; each=$((h * w / 4)); fi
    av=$("$json" tokens <"$dir/media")
    text=$(($("$json" usage.prompt_tokens <"$dir/run") - av))
    # shellcheck disable=SC2086
    "$bin" inspect schedule --json $policy --audio-tokens "$audio" --video-steps "$steps" --step-tokens "$each" \
        --text-tokens $text >"$dir/plan"
    is "$what: tokens a layer as planned" "$("$json" omnidrop.kept_per_layer <"$dir/run")" "$("$json" alive <"$dir/plan")"
    is "$what: pages a layer as planned" "$("$json" omnidrop.pages_per_layer <"$dir/run")" "$("$json" pages_per_layer <"$dir/plan")"
    is "$what: mean retention as planned" "$("$json" omnidrop.mean_retention <"$dir/run")" "$("$json" mean_retained <"$dir/plan")"
    is "$what: parameters as planned" "$("$json" omnidrop.resolved <"$dir/run")" "$("$json" resolved <"$dir/plan")"
}
agrees "film, 40 %" "$film" "--retention 0.4" $demo/av000.mp4
agrees "film, 70 % without step 0" "$film" "--retention 0.7 --no-step0" $demo/av000.mp4
agrees "film, drops as told" "$film" "--policy omnidrop --p-init 0.05 --p-final 0.5 --t-mid 0.3" $demo/av000.mp4
agrees "film, another kappa" "$film" "--policy omnidrop --policy-param kappa=0.5 --policy-param ref=anchor" $demo/av000.mp4
agrees "film, other rows, other scores" "$film" "--retention 0.4 --policy-param query=last --policy-param tds=max" $demo/av000.mp4
agrees "film, the same counts at random" "$film" "--policy random-layers --retention 0.4 --seed 3" $demo/av000.mp4
agrees "film, evenly spaced" "$film" "--policy uniform --retention 0.5" $demo/av000.mp4
agrees "film, random" "$film" "--policy random --retention 0.5 --seed 3" $demo/av000.mp4
agrees "film, nothing dropped" "$film" "--policy none" $demo/av000.mp4
agrees "silent film" "--video $demo/video000.mp4" "--retention 0.35" $demo/video000.mp4
agrees "sound" "--audio $demo/speech000.wav" "--retention 0.5" $demo/speech000.wav
agrees "picture" "--image $demo/image001.png" "--retention 0.7" $demo/image001.png
"$bin" chat $film --retention 0.4 --return-pruning -p 'What colour is the star?' >"$dir/said" 2>"$dir/err" </dev/null
ask --json --return-pruning $film --retention 0.4 -p 'What colour is the star?' >"$dir/run"
is "the table on stderr says the same" "[$(awk '$1 ~ /^[0-9]+$/ && NF == 6 { printf "%s%s", n++ ? "," : "", $2 }' "$dir/err")]" \
    "$("$json" omnidrop.kept_per_layer <"$dir/run")"
is "and standard output the answer alone" "$(wc -l <"$dir/said")" 1
is "bytes of pages are pages times their size" "$("$json" omnidrop.kv_bytes <"$dir/run")" \
    $((($("$json" omnidrop.pages_per_layer <"$dir/run" | tr -d '[]' | tr ',' '+')) * $("$json" omnidrop.kv_bytes_unpruned <"$dir/run") / film_pages))

# --- stop texts, sampling
is "--stop ends before its text" "$(ask --stop 'say' -p 'Hello!')" "Hello! Show me shapes or "
is "the first of several" "$(ask --stop 'say' --stop 'me' -p 'Hello!')" "Hello! Show "
is "a stop text that never comes" "$(ask --stop 'xyz' -p 'Hello!')" "Hello! Show me shapes or say some words."
hot="-m $random --temperature 1.5 --max-tokens 24 -p x"
# shellcheck disable=SC2086
{
    first=$(ask $hot --seed 1)
    is "one seed, one text" "$(ask $hot --seed 1)" "$first"
    if [[ $(ask $hot --seed 2) != "$first" ]]; then ok "another seed, another"; else not_ok "another seed, another" "$first"; fi
    is "top-k 1 is greedy" "$(ask $hot --top-k 1 --seed 5)" "$(ask -m $random --max-tokens 24 -p x)"
    is "a tiny top-p too" "$(ask $hot --top-p 0.000001 --seed 6)" "$(ask -m $random --max-tokens 24 -p x)"
}

# --- what goes where
"$bin" chat -q -p 'Hello!' >/dev/null 2>"$dir/err" </dev/null; is "--quiet: stderr is empty" "$(cat "$dir/err")" ""
"$bin" chat -v -p 'Hello!' >"$dir/said" 2>"$dir/err" </dev/null
is "-v: more on stderr, the same on stdout" "$(grep -c 'pages of' "$dir/err") $(cat "$dir/said")" "1 Hello! Show me shapes or say some words."
"$bin" chat -v --log-format json -p 'Hello!' >/dev/null 2>"$dir/err" </dev/null
is "--log-format json: an object a line" "$(while read -r l; do "$json" level <<<"$l"; done <"$dir/err" | sort -u | tr '\n' ' ')" "detail note "
exits "what is missing in a damaged film is said" 0 'bad_half.mp4: truncated: 42 of its 75 frames' \
    "$bin" chat --video tests/data/media/bad_half.mp4 -p 'What is shown?'
is "and in the JSON" "$(ask --json --video tests/data/media/bad_half.mp4 -p x | "$json" warnings | grep -c truncated)" 1
"$bin" chat $endless 2>"$dir/err" </dev/null | head -c 1 >/dev/null
is "a reader that goes away ends it quietly" "${PIPESTATUS[0]} $(cat "$dir/err")" "0 "
for o in --json --no-stream; do
    "$bin" chat $o -m $random --max-tokens 20 -p x 2>"$dir/err" </dev/null | true
    is "$o: the same" "${PIPESTATUS[0]} $(cat "$dir/err")" "0 "
done
yes x | "$bin" chat -m $random --max-tokens 40 2>"$dir/err" | head -c 1 >/dev/null
is "a conversation too" "${PIPESTATUS[1]} $(cat "$dir/err")" "0 "
if [[ -e /dev/full ]]; then
    "$bin" chat -p 'Hello!' >/dev/full 2>"$dir/err" </dev/null
    is "a full disk is no success" "$? $(grep -c 'could not be written' "$dir/err")" "7 1"
fi

# --- signals
rm "$dir/said"
"$bin" chat $endless >"$dir/said" 2>"$dir/err" </dev/null & pid=$!
wait_for test -s "$dir/said"; kill -INT $pid; wait $pid
is "Ctrl-C within an answer" "$? $(cat "$dir/err")" "130 omnidrop: error: interrupted"
check "what came before it is there, as a line" test "$(tail -c 1 "$dir/said" | od -An -c | tr -d ' ')" = '\n'
mkfifo "$dir/in"
"$bin" chat -v <"$dir/in" >"$dir/said" 2>"$dir/err" & pid=$!
exec 9>"$dir/in"; wait_for grep -q loaded "$dir/err"; kill -INT $pid; wait $pid; is "Ctrl-C between answers" $? 130; exec 9>&-
"$bin" chat $endless >"$dir/said2" 2>/dev/null </dev/null & pid=$!
wait_for test -s "$dir/said2"; kill -TERM $pid; { wait $pid; } 2>/dev/null; is "SIGTERM" $? 143
exit $bad
