#!/bin/bash
# Goal: omnidrop.ini in a model's folder gives that model's defaults to every command, and comes after all that a person
# says; without -m every command says which model it takes. Method: the bundled model with another such file beside it;
# what each command shows of the values that it used.
. tests/cli/lib.sh
own=$dir/own; mkdir "$own"
for f in models/omni-tiny/*; do [[ $f == */omnidrop.ini ]] || ln -s "$PWD/$f" "$own/"; done
printf '[transcribe]\ninstruction = What is said?\nwindow = 3\noverlap = 0.5\n[policy]\nomnidrop.t_mid = 0.25\nomnidrop.p_final = 0.4\nomnidrop.beta = 11\n' >"$own/omnidrop.ini"
printf '[common]\np-final = 0.45\n[chat]\nt-mid = 0.3\nbeta = 12\n[inspect]\nwindow = 4\n' >"$dir/config"
ask=(-m "$own" -q --json --return-pruning --audio $demo/phrase000.wav -p 'What is said?')
# shown OPTIONS...: what a chat resolved
shown() { "$bin" chat "${ask[@]}" "$@" | "$json" omnidrop.policy omnidrop.resolved.t_mid omnidrop.resolved.p_final omnidrop.resolved.beta | tr '\n' ' '; }

# --- who wins
is "the model's values" "$(shown --policy omnidrop)" "omnidrop 0.25 0.4 11.0 "
is "a file comes before them" "$(shown --policy omnidrop --config "$dir/config")" "omnidrop 0.3 0.45 12.0 "
is "the environment before the file" "$(OMNIDROP_T_MID=0.35 shown --policy omnidrop --config "$dir/config")" "omnidrop 0.35 0.45 12.0 "
is "a flag before both" "$(OMNIDROP_T_MID=0.35 shown --t-mid 0.4 --config "$dir/config")" "omnidrop 0.4 0.45 12.0 "
is "--policy-param is a flag" "$(shown --policy-param t_mid=0.45)" "omnidrop 0.45 0.4 11.0 "
is "a retention takes the place of the model's p_final" "$(shown --retention 0.5 | cut -d ' ' -f 1,2)" "omnidrop 0.25"
is "no policy is chosen by it" "$("$bin" chat "${ask[@]}" | "$json" omnidrop.policy)" none
is "another model has none of it" "$("$bin" inspect schedule -m $random --json | "$json" resolved.t_mid)" 0.5

# --- every command
is "inspect schedule" "$("$bin" inspect schedule -m "$own" --json | "$json" resolved.t_mid resolved.p_final | tr '\n' ' ')" "0.25 0.4 "
is "of layers that are named: no model's" "$("$bin" inspect schedule --layers 12 --json | "$json" resolved.t_mid resolved.p_final | tr '\n' ' ')" "0.5 0.2 "
is "inspect model" "$("$bin" inspect model "$own" --json | "$json" defaults)" \
    '{"transcribe":{"instruction":"What is said?","window":3.0,"overlap":0.5},"policy":{"omnidrop":{"p_final":0.4,"t_mid":0.25,"beta":11.0}}}'
is "inspect model, of none" "$("$bin" inspect model $random --json | "$json" defaults)" '{"transcribe":{},"policy":{}}'
windows() { "$json" windows.window_s windows.overlap_s | tr '\n' ' '; }
is "inspect media" "$("$bin" inspect media -m "$own" --json $demo/speech000.wav | windows)" "3.0 0.5 "
is "inspect media, a file" "$("$bin" inspect media -m "$own" --json --config "$dir/config" $demo/speech000.wav | windows)" "4.0 0.5 "
is "inspect media, a flag" "$("$bin" inspect media -m "$own" --json --config "$dir/config" --window 2 $demo/speech000.wav | windows)" "2.0 0.5 "
"$bin" transcribe -q -m "$own" -F json -o "$dir/own.json" --policy omnidrop $demo/speech000.wav
n=$("$json" omnidrop.windows.# <"$dir/own.json")
check "transcribe: windows of 3 s" bash -c "(( $n >= 2 ))"
"$bin" transcribe -q -m "$own" -F json -o "$dir/own30.json" --window 30 $demo/speech000.wav
is "transcribe: a flag" "$("$json" omnidrop.windows.# <"$dir/own30.json")" 1
printf '{"custom_id":"%s","method":"POST","url":"/v1/chat/completions","body":{"messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{"data":"%s","format":"wav"}},{"type":"text","text":"What is said?"}]}],"omnidrop":{"policy":"omnidrop","return_pruning":true%s}}}\n' \
    a "$(base64 -w0 $demo/phrase000.wav)" '' b "$(base64 -w0 $demo/phrase000.wav)" ',"t_mid":0.55,"retention":0.5' >"$dir/lines"
"$bin" batch -m "$own" -i "$dir/lines" -o "$dir/answers" --beta 13 2>"$dir/err"
line() { grep -F "\"custom_id\":\"$1\"" "$dir/answers" | "$json" response.body.omnidrop.resolved.t_mid response.body.omnidrop.resolved.beta | tr '\n' ' '; }
is "batch: the model's, and the flag's" "$(line a)" "0.25 13.0 "
is "batch: the line's" "$(line b)" "0.55 13.0 "
is "batch says what pruning gives" "$(grep -cE 'policy omnidrop: of films of [0-9]+ s .* the pages hold [0-9]+ at once, without pruning [0-9]+ ' "$dir/err")" 1
"$bin" batch -q -y -m "$own" -i "$dir/lines" -o "$dir/answers" 2>"$dir/err"
is "-q: nothing is said" "$(cat "$dir/err")" ""

# --- wrong files
bad_file() { printf '%b' "$2" >"$own/omnidrop.ini"; refuses "$1" 4 "own/omnidrop.ini:$3" "$bin" chat -m "$own" -p x; }
bad_file "an unknown section" '\n[chat]\n' '2: there is no section \[chat\]: give \[transcribe\] or \[policy\]'
bad_file "an unknown key" '[transcribe]\nwindows = 3\n' '2: .*"windows": give instruction, language, window or overlap'
bad_file "an unknown policy" '[policy]\nguess.x = 1\n' '2: .*"guess".*omnidrop'
bad_file "out of range" '[policy]\nomnidrop.t_mid = 2\n' '2: t_mid is 2: give a number from 0 to 1'
refuses "inspect model says so too" 4 'own/omnidrop.ini:2: t_mid is 2' "$bin" inspect model "$own"
refuses "and inspect schedule" 4 'own/omnidrop.ini:2: t_mid is 2' "$bin" inspect schedule -m "$own"
refuses "and inspect media" 4 'own/omnidrop.ini:2: t_mid is 2' "$bin" inspect media -m "$own" $demo/speech000.wav

# --- which model
said='no model was named: using the bundled omni-tiny'
exits "chat names its model" 0 "$said" "$bin" chat -p Hello!
exits "transcribe" 0 "$said" "$bin" transcribe -o - $demo/phrase000.wav
exits "batch" 0 "$said" "$bin" batch -y -i "$dir/lines" -o "$dir/answers"
exits "bench" 0 "$said" "$bin" bench latency --num-iters 1 --warmup 0 --output-len 2
is "inspect model" "$("$bin" inspect model | head -1 | grep -c omni-tiny)" 1
exit $bad
