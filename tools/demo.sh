#!/bin/bash
# tools/demo.sh PROGRAM: a real film with sound through the whole engine with the bundled model: what it says and shows,
# asked with every token and with 30 % of them, each answer beside the truth; what lived at each layer and in how many
# pages; how long each stage took; a speech file as subtitles. All answers are computed here, the truth is that of
# questions.jsonl. Ends with how many were right, and where to go on. Exit status 1: the engine failed.
set -u
omnidrop=$1
build=$(dirname "$omnidrop")
clips=tests/data/omni-tiny-demo
pruned=(--policy omnidrop --retention 0.3)
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT

line() { printf '\n== %s\n' "$*"; }
die() { echo "demo: $*" >&2; exit 1; }
get() { "$build/tests/cli/json_get" "$@"; }

# The film: the first one whose questions have a word that is said while something is shown, and the other way round.
film='' word_while='' shape_while='' words='' screen=''
# pick FILM: its questions of each kind, as lines of questions.jsonl; fails where one is missing
pick() {
    local of
    of=$(grep -F "\"video\": \"$1\"" $clips/questions.jsonl)
    words=$(grep -m1 '"kind": "transcribe"' <<<"$of")
    word_while=$(grep -m1 '"kind": "word_while"' <<<"$of")
    shape_while=$(grep -m1 '"kind": "shape_while"' <<<"$of")
    screen=$(grep -m1 -E '"kind": "(screen_at|colour_of|shape_of|count_at|when)"' <<<"$of")
    [[ -n $words && -n $word_while && -n $shape_while && -n $screen ]]
}
for f in $clips/av*.mp4; do pick "$(basename "$f")" && { film=$f; break; }; done
[[ -n $film ]] || die "no film in $clips has a question of each kind"

line "The film, the device, the model"
"$omnidrop" inspect media "$film" | head -3 || die "the film cannot be read"
"$omnidrop" inspect device | head -1
"$omnidrop" inspect model | head -1

# ask NAME QUESTION_LINE OPTIONS...: the whole reply goes to $work/NAME, its text to standard output
ask() {
    local name=$1 question; shift
    question=$(get question <<<"$1"); shift
    "$omnidrop" chat -q --json --return-pruning --video "$film" -p "$question" "$@" >"$work/$name" || die "the engine failed"
    get text <"$work/$name"
}

right=0 asked=0
# mark SAID TRUTH: counts it; a sign
mark() { if [[ $1 == "$2" ]]; then echo "+"; else echo "-"; fi; }
line "Asked with every token, and with 30 % of them (${pruned[*]}); + equals the truth"
n=0
for q in "$words" "$screen" "$word_while" "$shape_while"; do
    n=$((n + 1))
    all=$(ask "none$n" "$q" --policy none) || exit 1
    some=$(ask "omnidrop$n" "$q" "${pruned[@]}") || exit 1
    truth=$(get answer <<<"$q")
    get question <<<"$q" | sed 's/^/  /'
    printf '      truth     %s\n      none      %s %s\n      omnidrop  %s %s\n' "$truth" "$(mark "$all" "$truth")" "$all" \
        "$(mark "$some" "$truth")" "$some"
    for said in "$all" "$some"; do
        asked=$((asked + 1))
        [[ $said == "$truth" ]] && right=$((right + 1))
    done
done

# list FILE KEY: the members of a list, a line each
list() { get "omnidrop.$2" <"$work/$1" | tr -d '[]' | tr ',' '\n'; }
page=$("$omnidrop" inspect device --json | get page_tokens)
line "Tokens of sound and film, and pages of $page rows, at each layer: $(get question <<<"$shape_while")"
paste <(list none$n kept_per_layer) <(list omnidrop$n kept_per_layer) <(list none$n pages_per_layer) \
    <(list omnidrop$n pages_per_layer) | awk -v in1="$(get omnidrop.av_tokens_in.audio <"$work/none$n")" \
    -v in2="$(get omnidrop.av_tokens_in.video <"$work/none$n")" '
    function row(name, a, b, c, d) { printf "  %7s  %6s %9s   %6s %9s\n", name, a, b, c, d }
    BEGIN { printf "  %7s  %16s   %16s\n", "", "tokens", "pages"; row("layer", "none", "omnidrop", "none", "omnidrop") }
    { row(NR - 1, $1, $2, $3, $4); for (i = 1; i <= 4; i++) sum[i] += $i }
    END {
        row("total", sum[1], sum[2], sum[3], sum[4])
        printf "  %d tokens of sound and %d of film came in; kept on average %.1f %%; %.2fx fewer pages\n", in1, in2,
               100 * sum[2] / sum[1], sum[3] / sum[4]
    }'

line "Milliseconds of each stage, of the question above and of the transcript"
for k in "1 transcript" "$n question"; do
    for p in none omnidrop; do
        printf '%s %s %s\n' "${k#* }" "$p" "$(get omnidrop.media_ms omnidrop.encode_ms omnidrop.prefill_ms omnidrop.decode_ms \
            usage.completion_tokens usage.prompt_tokens <"$work/$p${k%% *}" | tr '\n' ' ')"
    done
done | awk 'BEGIN { printf "  %-11s %-9s %10s %8s %8s %8s\n", "", "policy", "decode", "towers", "prefill", "answer" }
    { printf "  %-11s %-9s %10.1f %8.1f %8.1f %8.1f   %d tokens in, %d out\n", $1, $2, $3, $4, $5, $6, $8, $7 }'
echo "  (decode: FFmpeg, log-mel and patches; answer: one token after the other)"

line "A speech file, in windows, as subtitles"
speech=$(grep -F '"audio": "speech' $clips/questions.jsonl | grep -m1 '"kind": "transcribe"')
"$omnidrop" transcribe -q -F srt,txt -o "$work" "$clips/$(get audio <<<"$speech")" || die "the transcription failed"
srt=$(echo "$work"/*.srt)
cat "$srt"
said=$(tr '\n' ' ' <"${srt%.srt}.txt" | sed 's/ *$//') truth=$(get answer <<<"$speech")
printf 'truth  %s %s\n' "$(mark "$said" "$truth")" "$truth"
asked=$((asked + 1))
[[ $said == "$truth" ]] && right=$((right + 1))

line "$right of $asked answers equal the truth"
echo "Go on:  $omnidrop serve           then http://127.0.0.1:8000 in a browser, or any OpenAI client"
echo "        $omnidrop chat --help     and transcribe, batch, bench, inspect"
echo "        README.md; docs/http-api.md; models/omni-tiny/README.md: what this model knows, and how well"
