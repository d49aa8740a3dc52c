#!/bin/bash
# Goal: `omnidrop inspect` says what is there and what it would cost, as text and as JSON, without running a model.
# Method: facts of the bundled model and of the demo clips, ffprobe's opinion of files, sums and invariants of schedules
# and windows, the windows that transcribe then makes.
. tests/cli/lib.sh
inspect() { "$bin" inspect "$@"; }
# at FILE PATH...: values of a JSON file, on one line
at() { local f=$1; shift; "$json" "$@" <"$f" | tr '\n' ' '; }

# --- model
inspect model --json >"$dir/m"
is "its defaults, as text" "$(inspect model | grep -c '^omnidrop.ini ')" "$(grep -c '^[a-z].*=' models/omni-tiny/omnidrop.ini)"
is "its defaults, as JSON" "$(inspect model --json | "$json" defaults.policy.omnidrop.t_mid)" "$(sed -nE 's/^omnidrop.t_mid = //p' models/omni-tiny/omnidrop.ini)"
is "the bundled model" "$(at "$dir/m" text.layers text.heads text.kv_heads dtype)" "12 6 2 BF16 "
inspect model --json $random >"$dir/m"
is "another, as a word" "$(at "$dir/m" dir text dtype)" \
    "$random {\"layers\":5,\"hidden\":60,\"heads\":3,\"kv_heads\":1,\"head_dim\":24,\"ff\":83,\"vocab\":406,\"context\":32768} F32 "
is "or by -m" "$(inspect model --json -m $random)" "$(cat "$dir/m")"
is "bytes of KV: K and V of a head of 24 in f32" "$(at "$dir/m" kv_bytes_per_token_layer)" "192 "
check "as text" bash -c "'$bin' inspect model $random | grep -q '^decoder  5 layers, width 60, 3 query and 1 KV heads of 24'"
mkdir "$dir/k"; cp -r $random "$dir/k/"$'m\xff'
is "a folder whose name is no UTF-8" "$(inspect model --json "$dir/k/"$'m\xff' | "$json" tensors)" "$("$json" tensors <"$dir/m")"

# --- media
for f in $demo/av000.mp4 $demo/video001.mp4 tests/data/media/sound.mp3 tests/data/media/turned90.mp4 tests/data/media/stereo.wav; do
    inspect media --json "$f" >"$dir/j"
    probe() { ffprobe -v error -select_streams "$1:0" -show_entries "stream=$2" -of csv=p=0 "$f" | tr -d ,; }
    rate=$(probe a sample_rate); codec=$(probe v codec_name)
    [[ -n $rate ]] && is "${f##*/}: sample rate and codec of the sound" "$(at "$dir/j" audio.rate audio.codec)" "$rate $(probe a codec_name) "
    [[ -n $codec ]] && is "${f##*/}: codec of the film" "$(at "$dir/j" video.codec)" "$codec "
done
inspect media --json --exact $demo/av000.mp4 >"$dir/j"
is "tokens: 25 a second of sound, a quarter of the grid" "$(at "$dir/j" audio.tokens audio.exact video.grid video.tokens tokens)" "150 true [6,6,8] 72 222 "
is "--fps: half the frames" "$(inspect media --json --fps 1 $demo/av000.mp4 | "$json" video.grid)" "[3,6,8]"
is "--max-pixels: smaller ones" "$(inspect media --json --max-pixels 4000 $demo/video000.mp4 | "$json" video.resized_width video.resized_height | tr "\n" " ")" "84 56 "
is "a picture has no windows" "$(inspect media --json $demo/image001.png | "$json" image tokens windows 2>/dev/null | tr '\n' ' ')" "true 20 "
is "a file is an object, several are a list" "$(inspect media --json $demo/image000.png $demo/phrase000.wav | "$json" '#' 1.file | tr '\n' ' ')" "2 $demo/phrase000.wav "
cp $demo/image000.png "$dir/"$'i\xff.png'
is "a name that is no UTF-8" "$(inspect media --json "$dir/"$'i\xff.png' | "$json" image)" true
is "a damaged film is shown with a warning" "$(inspect media --json tests/data/media/bad_half.mp4 | "$json" warning | grep -c '42 of its 75 frames')" 1

# --- windows: those of transcribe
ffmpeg -v error -i $demo/speech000.wav -i $demo/phrase000.wav -i $demo/speech001.wav -i $demo/phrase001.wav \
    -filter_complex '[0]apad=pad_dur=4[a];[1]apad=pad_dur=1[b];[a][b][2][3]concat=n=4:v=0:a=1' -ar 16000 -c:a pcm_s16le "$dir/talk.wav"
# same WHAT OPTIONS...: inspect's plan against the windows in transcribe's JSON
same() {
    local what=$1 n i; shift
    inspect media --json "$@" "$dir/talk.wav" >"$dir/plan"
    "$bin" transcribe -q -F json -o - "$@" "$dir/talk.wav" >"$dir/t"
    n=$("$json" 'windows.list.#' <"$dir/plan")
    is "$what: as many as transcribe makes" "$n" "$("$json" 'omnidrop.windows.#' <"$dir/t")"
    local -a a=() b=()
    for ((i = 0; i < n; i++)); do a+=("windows.list.$i.start" "windows.list.$i.end"); b+=("omnidrop.windows.$i.start" "omnidrop.windows.$i.end"); done
    is "$what: the same bounds" "$(at "$dir/plan" "${a[@]}" | tr ' ' '\n' | xargs -n 1 printf '%.3f ')" \
        "$(at "$dir/t" "${b[@]}" | tr ' ' '\n' | xargs -n 1 printf '%.3f ')"
    check "$what: they tile the sound, none is longer than told" awk -v n="$n" -v most="$("$json" windows.window_s <"$dir/plan")" \
        '{ for (i = 1; i < NF; i += 2) { if (i > 1 && $i != $(i - 1) || $(i + 1) <= $i || $(i + 1) - $i > most + 1e-9) exit 1 } exit ($1 != 0 || NF != 2 * n) }' \
        <<<"$(at "$dir/plan" "${a[@]}")"
}
same "windows"
same "windows of 3 s" --window 3
same "windows of 5 s that overlap by 2" --window 5 --overlap 2
inspect media --window 3 "$dir/talk.wav" >"$dir/text"
is "text: a line a window" "$(grep -cE '^ +[0-9]+ +[0-9.]+ - +[0-9.]+ s  voice' "$dir/text")" "$(inspect media --json --window 3 "$dir/talk.wav" | "$json" 'windows.list.#')"
is "--no-windows: none" "$(inspect media --no-windows "$dir/talk.wav" | grep -c transcribe:)" 0
exits "a window too long" 2 '--window 500: give a number from 2 to 120' inspect media --window 500 "$dir/talk.wav"
exits "an overlap too long" 2 '--overlap 4: give a number from 0 to 2.5' inspect media --window 5 --overlap 4 "$dir/talk.wav"

# --- schedule
inspect schedule --layers 28 --retention 0.3 --json >"$dir/s"
is "a retention is met" "$("$json" mean_retained <"$dir/s" | cut -c 1-5)" 0.300
check "the mean is that of the list, it never grows" awk -F, -v mean="$("$json" mean_retained <"$dir/s")" -v av="$("$json" av_tokens <"$dir/s")" \
    '{ gsub(/[][]/, ""); for (i = 1; i <= NF; i++) { s += $i; if (i > 1 && $i > $(i - 1)) exit 1 } d = s / NF / av - mean; exit (NF != 28 || d * d > 1e-18) }' \
    <<<"$("$json" alive <"$dir/s")"
check "pages: tokens and text over the page, rounded up" awk -v t=40 -v page="$("$json" page_tokens <"$dir/s")" -v sum="$("$json" pages <"$dir/s")" \
    '{ gsub(/[][]/, ""); n = split($1, a, ","); split($2, p, ","); for (i = 1; i <= n; i++) { s += p[i]; if (p[i] != int((a[i] + t + page - 1) / page)) exit 1 } exit s != sum }' \
    <<<"$(at "$dir/s" alive pages_per_layer)"
inspect schedule --p-init 0 --p-final 0.2 --t-mid 0.5 --beta 20 --json >"$dir/s"
is "the shown parameters are the given ones" "$(at "$dir/s" policy resolved.p_init resolved.p_final resolved.t_mid resolved.beta)" "omnidrop 0.0 0.2 0.5 20.0 "
is "none drops nothing" "$(inspect schedule --policy none --json | "$json" mean_retained entering av_tokens | tr '\n' ' ')" "1.0 10140 10140 "
is "text and JSON agree" "[$(inspect schedule --retention 0.4 | awk '$1 ~ /^[0-9]+$/ { printf "%s%s", n++ ? "," : "", $3 }')]" \
    "$(inspect schedule --retention 0.4 --json | "$json" alive)"
is "layers of the model that is named" "$(inspect schedule -m $random --json | "$json" layers)" 5
is "of the bundled one" "$(inspect schedule --json | "$json" layers)" 12
for ((l = 0; l < 28; l++)); do echo "$((l < 14))"; done | sed 's/^0$/0.25/' >"$dir/rates"
is "a retention for each layer from a file" "$(inspect schedule --layers 28 --policy table --policy-param rates=@"$dir/rates" --json \
    | "$json" alive.13 alive.14 alive.27 | tr '\n' ' ')" "10140 2535 2535 "
exits "a file that is not there" 2 'no-such-rates' inspect schedule --layers 28 --policy table --policy-param rates=@no-such-rates
exits "a retention out of reach" 2 'cannot be reached: .*28 layers.* it lies from' inspect schedule --layers 28 --retention 0.01

# --- policies
inspect policies --json >"$dir/p"
is "policies of the build" "$(for ((i = 0; i < $("$json" '#' <"$dir/p"); i++)); do "$json" $i.name <"$dir/p"; done | tr '\n' ' ' | cut -d ' ' -f 1-3)" "none random omnidrop"
is "as text too" "$(inspect policies | grep -oE '^[a-z0-9_]+' | wc -l)" "$("$json" '#' <"$dir/p")"
uncited() { for ((i = 0; i < $("$json" '#' <"$dir/p"); i++)); do [ -n "$("$json" $i.citation <"$dir/p")" ] || "$json" $i.name <"$dir/p"; done; }
is "each with where it is from" "$(uncited)" ""
check "a line of its own in the text" bash -c "'$bin' inspect policies | grep -qE '^ +Park et al., OmniDrop, arXiv 2605.14458 \(2026\)$'"
check "words are shown as words" bash -c "'$bin' inspect policies | grep -qE ' ref +dycoke\|anchor \[dycoke\]'"
check "so are those of the scores" bash -c "'$bin' inspect policies | grep -E ' (tds|query) ' | tr -s ' \n' ' ' | grep -q 'tds printed|max|off \[off\].* query text|after|last \[text\]'"
check "switches as switches" bash -c "'$bin' inspect policies | grep -qE ' step0 +true\|false \[true\]'"
check "so in JSON" bash -c "grep -A3 '\"choices\"' '$dir/p' | grep -q dycoke"

# --- device
inspect device --device cpu --json >"$dir/d"
is "the device" "$(at "$dir/d" device page_tokens)" "cpu 16 "
check "its memory" test "$("$json" memory_bytes <"$dir/d")" -gt 100000000
# Without the shared object, and with the one that the CPU plays (tests/kernels/fake_cuda.cpp).
none() { OMNIDROP_LIB=$dir inspect device "$@"; }
played() { OMNIDROP_LIB=$(dirname "$bin")/tests/simt inspect device --device cuda "$@"; }
is "no shared object of CUDA" "$(none --device cpu --json | "$json" cuda.backend)" "false"
refuses "asked for, it is missed by name" 4 'omnidrop-cuda.so.*--device cpu' none --device cuda
played --json >"$dir/d2"
is "the device of CUDA" "$(at "$dir/d2" device page_tokens cuda.backend)" "cuda 64 true "
for ((i = 0; i < $("$json" 'instruction_sets.#' <"$dir/d"); i++)); do
    isa=$("$json" instruction_sets.$i <"$dir/d")
    check "device: $isa can be chosen" bash -c "'$bin' inspect device --isa $isa | grep -q '$isa, '"
    is "$isa: the right answer" "$("$bin" chat -q --isa "$isa" --audio $demo/phrase000.wav -p 'What is said?')" "turn four"
done
is "threads" "$(inspect device -t 1 | grep -c ', 1 thread')" 1

# --- usage
for w in '' 'modell' 'device x' 'policies x' 'schedule x' 'model a b' 'media'; do
    # shellcheck disable=SC2086
    refuses "inspect $w" 2 'error: inspect' inspect $w
done
for w in policies schedule device model; do
    inspect $w 2>"$dir/err" | true
    is "inspect $w: a reader that goes away ends it quietly" "${PIPESTATUS[0]} $(cat "$dir/err")" "0 "
done
exit $bad
