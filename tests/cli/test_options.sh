#!/bin/bash
# Goal: options come from flags, environment, file and defaults in this order, and a wrong one is told by its name.
# Method: --print-config shows what was taken; bad words on every road; exit status 2 and an empty standard output.
. tests/cli/lib.sh
c=(env "$bin" chat)
# value KEY COMMAND...: what --print-config says of it
value() { local key=$1; shift; "$@" --print-config | sed -nE "s/^$key = (.*)/\1/p"; }

# --- who wins
printf '# a comment\n; another\n[common]\nthreads = 3\nquiet=yes\n\n[chat]\n  max_tokens =  7 \ntemperature = 0.5\n[transcribe]\nnonsense = 1\n' >"$dir/ini"
is "default" "$(value max-tokens "${c[@]}")" 512
is "file before default" "$(value max-tokens "${c[@]}" --config "$dir/ini")" 7
is "environment before file" "$(value max-tokens env OMNIDROP_MAX_TOKENS=9 OMNIDROP_CONFIG="$dir/ini" "$bin" chat)" 9
is "flag before environment" "$(value max-tokens env OMNIDROP_MAX_TOKENS=9 "$bin" chat --max-tokens 11 --config "$dir/ini")" 11
is "the last of two flags" "$(value max-tokens "${c[@]}" --max-tokens 11 --max_tokens=12)" 12
is "[common] holds for every command" "$(value threads env "$bin" inspect --config "$dir/ini")" 3
is "an empty variable is none" "$(value threads env OMNIDROP_THREADS= "$bin" chat)" 0
is "spellings of a flag" "$(for s in --max-tokens=5 --max_tokens=5 '--max-tokens 5' '--max_tokens 5'; do
    # shellcheck disable=SC2086
    value max-tokens "${c[@]}" $s; done | tr '\n' ' ')" "5 5 5 5 "
is "spellings of a short flag" "$(for s in -t4 -t=4 '-t 4'; do
    # shellcheck disable=SC2086
    value threads "${c[@]}" $s; done | tr '\n' ' ')" "4 4 4 "
is "switches" "$(for s in --stream --no-stream --no_stream --stream=false --stream=on --stream=0; do
    value stream "${c[@]}" $s; done | tr '\n' ' ')" "true false false false on 0 "
is "a switch of the environment" "$(value stream env OMNIDROP_STREAM=no "$bin" chat)" no

# --- round trip
odd=(--prompt $'two\nlines, "quoted" \\ ' --system ' blank ' --stop ',' --stop '\' --stop $'a,\n b ' --image 'x, y.png'
     --video z.mp4 --policy omnidrop --p-final 0.3 --no-step0 --policy-param kappa=0.4 -m 'a = b' --no-stream)
"${c[@]}" "${odd[@]}" --print-config >"$dir/c1"
"${c[@]}" --config "$dir/c1" --print-config >"$dir/c2"
is "--print-config is a file for --config" "$(diff "$dir/c1" "$dir/c2")" ""
printf '[chat]\nprompt = "What is said?"\naudio = %s\n' $demo/phrase000.wav >"$dir/ask"
is "media and question of a file" "$("$bin" chat -q --config "$dir/ask")" "turn four"
is "a list of the environment" "$(OMNIDROP_STOP='say, me' "$bin" chat -q -p 'Hello!')" "Hello! Show "
is "a flag takes its place" "$(OMNIDROP_STOP='say, me' "$bin" chat -q -p 'Hello!' --stop shapes)" "Hello! Show me "
is "media of the environment" "$(OMNIDROP_AUDIO=$demo/phrase000.wav "$bin" chat -q -p 'What is said?')" "turn four"

# --- help
for cmd in chat transcribe inspect bench; do
    exits "$cmd --help" 0 '' "$bin" $cmd --help
    is "$cmd --help: on standard output, with the common options" "$(grep -cE '^ *(-., )?--(model|device|threads|config|help) ' "$dir/stdout") $(wc -c <"$dir/err")" "5 0"
    refuses "$cmd: an unknown option" 2 '--bogus: no such option; omnidrop '"$cmd"' --help' "$bin" $cmd --bogus
done
exits "--version" 0 '' "$bin" --version
is "the version" "$(grep -cE '^omnidrop [0-9]+\.[0-9]+\.[0-9]+$' "$dir/stdout")" 1
exits "--help" 0 '' "$bin" --help
refuses "no command" 2 'usage: omnidrop COMMAND' "$bin"
refuses "an unknown command" 2 'no command "tanscribe"' "$bin" tanscribe

# --- wrong ones
refuses "a missing value" 2 '-p needs a value' "${c[@]}" -p
refuses "of a long option" 2 '--fps needs a value' "${c[@]}" --fps
refuses "an unknown short option" 2 '-z: no such option' "${c[@]}" -z
refuses "no such switch off" 2 '--no-model: no such option' "${c[@]}" --no-model
refuses "a switch with a value" 2 '--quiet is a switch.*"maybe"' "${c[@]}" --quiet=maybe
refuses "a switch turned off with a value" 2 'takes no value' "${c[@]}" --no-quiet=1
refuses "a number that is none" 2 '--threads abc: give a whole number from 0 to 256' "${c[@]}" --threads abc -p x
refuses "half a number" 2 '--threads 2x' "${c[@]}" --threads 2x -p x
refuses "an empty number" 2 '--threads : give' "${c[@]}" --threads= -p x
refuses "a negative number" 2 '--max-tokens -1: give a whole number from 1' "${c[@]}" --max-tokens -1 -p x
refuses "over 64 bits" 2 '--seed 18446744073709551616' "${c[@]}" --seed 18446744073709551616 -p x
refuses "a share above 1" 2 '--top-p 1.5: give a number from' "${c[@]}" --top-p 1.5 -p x
refuses "not a number" 2 '--temperature nan' "${c[@]}" --temperature nan -p x
refuses "an fps of 0" 2 '--fps 0: give' "${c[@]}" --fps 0 -p x
refuses "an unknown log format" 2 '--log-format "xml": give text or json' "${c[@]}" --log-format xml -p x
refuses "an unknown progress" 2 '--progress "often": give auto' "${c[@]}" --progress often -p x
refuses "an unknown dtype" 2 'dtype "int4".*auto, f32 or bf16' "${c[@]}" --dtype int4 -p x
refuses "an unknown device" 4 "no device 'tpu'" "${c[@]}" --device tpu -p x
refuses "an unknown instruction set" 4 "no instruction set 'mmx'.*plain" "${c[@]}" --isa mmx -p x
refuses "a file without its option" 2 '"clip.mp4": files are given with' "${c[@]}" clip.mp4 -p x
refuses "a word after --" 2 '"--bogus"' "${c[@]}" -p x -- --bogus
refuses "an empty stop text" 2 '--stop: an empty text' "${c[@]}" --stop '' -p x
refuses "limits of pixels the wrong way round" 2 'min-pixels 5000 is above max-pixels 4000' \
    "${c[@]}" --min-pixels 5000 --max-pixels 4000 --image $demo/image001.png -p x

# --- wrong ones from elsewhere are told by the name of where they stand
refuses "a bad number of the environment" 2 'OMNIDROP_THREADS many: give' env OMNIDROP_THREADS=many "$bin" chat -p x
refuses "a bad switch of the environment" 2 'OMNIDROP_QUIET is a switch' env OMNIDROP_QUIET=2 "$bin" chat -p x
refuses "a bad choice of the environment" 2 'OMNIDROP_LOG_FORMAT "xml"' env OMNIDROP_LOG_FORMAT=xml "$bin" chat -p x
printf '[chat]\nfps = fast\n' >"$dir/bad"; refuses "a bad number of a file" 2 "fps in $dir/bad fast: give a number" "${c[@]}" --config "$dir/bad" -p x
printf '[chat]\nbogus = 1\n' >"$dir/bad"; refuses "an unknown key" 2 "$dir/bad:2: .*no option \"bogus\"" "${c[@]}" --config "$dir/bad" -p x
printf '\n[chat\n' >"$dir/bad"; refuses "a section without an end" 2 "$dir/bad:2: a section" "${c[@]}" --config "$dir/bad" -p x
printf 'fps\n' >"$dir/bad"; refuses "a line without =" 2 "$dir/bad:1: \"fps\": expected key = value" "${c[@]}" --config "$dir/bad" -p x
printf 'prompt = "x\n' >"$dir/bad"; refuses "a quote without its end" 2 "$dir/bad:1: prompt: a quote" "${c[@]}" --config "$dir/bad"
refuses "no such file" 2 "nope.ini: No such file" "${c[@]}" --config nope.ini -p x
refuses "a folder as file" 2 "--config $dir: Is a directory" "${c[@]}" --config "$dir" -p x

# --- errors as JSON
exits "errors as JSON too" 3 '^\{"level":"error","message":"nope.mp4: no such file"\}$' "$bin" chat -q --log-format json --video nope.mp4 -p x
exits "with names that are no UTF-8" 3 '"message":".*: no such file"\}$' "$bin" chat -q --log-format json --video $'n\xff\x80.mp4' -p x
check "well formed" bash -c "'$json' level message <'$dir/err'"
exit $bad
