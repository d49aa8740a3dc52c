#!/bin/bash
# Goal: the commands take `--device cuda`, say what they took, and answer as on the CPU; without CUDA they say so or do without.
# Method: in place of the backend beside the program the one that the CPU plays (tests/kernels/fake_cuda.cpp), under a tiny model
# of random weights, whose answers are only the same where all that is computed is.
. tests/cli/lib.sh
so=${OMNIDROP_BUILD:-$(dirname "$bin")}/tests/simt
tiny=(-m tests/goldens/odd-f16/checkpoint -t 1 --max-tokens 12 --temperature 0 --json)
pruned=(--image tests/goldens/odd/media/card.png --audio tests/goldens/odd/media/hum.wav --policy omnidrop --retention 0.7)
on() { local device=$1; shift; OMNIDROP_LIB=$so "$bin" chat -q --device "$device" "${tiny[@]}" "$@" </dev/null; }
none() { OMNIDROP_LIB=$dir "$bin" chat "${tiny[@]}" -p x "$@" </dev/null; }
says() { "$json" text usage finish_reason | tr '\n' ' '; }

for way in text pruned; do
    more=(); [[ $way == pruned ]] && more=("${pruned[@]}")
    cpu=$(on cpu -p 'Say all that you know.' "${more[@]}" | says)
    is "an answer to a prompt of $way" "$(on cuda -p 'Say all that you know.' "${more[@]}" | says)" "$cpu"
    if [[ ${#cpu} -gt 20 ]]; then ok "there is one"; else not_ok "there is one" "$cpu"; fi
done
# Which kernels a decoder with heads of 64 dims takes.
kernels() { SIMT_COMPUTE=$1 SIMT_KERNELS=$dir/kernels-$1 OMNIDROP_LIB=$so "$(dirname "$json")/../golden" --device cuda --threads 1 --dtype bf16 \
    tests/goldens/wide >/dev/null; }
kernels 80; kernels 90
taken() { grep -cE "^($2)$" "$dir/kernels-$1"; }
is "the portable kernels of tensor cores" "$(taken 80 'attention|score_stats|scores|attention_decode')" 4
is "those of sm_90a in their place" "$(taken 90 'attention_hopper|score_stats_hopper|scores_hopper|attention_decode')" 4
is "and no portable one beside" "$(taken 90 'attention|score_stats|scores')" 0
exits "the device and its memory are said" 0 'plays a GPU.*memory of .* GB: .* weights .* work of requests, .* pages, .* left' env OMNIDROP_LIB="$so" "$bin" chat -v --device cuda "${tiny[@]}" -p x
refuses "a pool of no pages" 2 'fewer than the . layers' env OMNIDROP_LIB="$so" "$bin" chat --device cuda "${tiny[@]}" --kv-bytes 1 -p x
refuses "a device that is too small" 7 'GB of memory are too little: .* weights .* pages' env OMNIDROP_FAKE_BYTES=120000000 \
    OMNIDROP_LIB="$so" "$bin" chat --device cuda "${tiny[@]}" -p x
refuses "a request that needs more than was planned" 7 'MB of work memory .*tokens of media.*work-bytes' env OMNIDROP_LIB="$so" "$bin" chat --device cuda \
    "${tiny[@]}" --max-model-len 4096 --work-bytes 300000 --image tests/goldens/odd/media/card.png --min-pixels 1605632 -p x
refuses "no shared object" 4 "no device 'cuda': omnidrop-cuda.so.*--device cpu" none --device cuda
exits "auto does without" 0 '' none --device auto

# Requests of several lengths side by side, some in two choices: decode steps as graphs and launch by launch.
for i in 1 2 3 4 5 6 7; do
    printf '{"custom_id": "%d", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "checkpoint", "max_tokens": %d, "n": %d, ' \
        $i $((3 * i)) $((1 + i % 2))
    printf '"temperature": 0.8, "seed": %d, "messages": [{"role": "user", "content": "Say %d."}]}}\n' $i $((i * i * i))
done >"$dir/lines"
for graphs in 0 1; do
    OMNIDROP_CUDA_GRAPHS=$graphs OMNIDROP_LIB=$so "$bin" batch -q --device cuda -t 1 -m tests/goldens/odd-f16/checkpoint -i "$dir/lines" \
        -o "$dir/answers$graphs" </dev/null
    while read -r line; do "$json" custom_id response.body.choices <<<"$line" | tr '\n' ' '; echo; done <"$dir/answers$graphs" |
        sort >"$dir/said$graphs"
done
is "answers with graphs and without" "$(cat "$dir/said1")" "$(cat "$dir/said0")"
if [[ $(wc -c <"$dir/said1") -gt 400 ]]; then ok "there are some"; else not_ok "there are some" "$(cat "$dir/said1")"; fi

# A server, and a question to it.
OMNIDROP_LIB=$so "$bin" serve --device cuda -m tests/goldens/odd-f16/checkpoint -t 1 --port 0 2>"$dir/serve" &
server=$!
for ((i = 0; i < 3000; i++)); do
    grep -q 'ready on' "$dir/serve" && break
    kill -0 $server 2>/dev/null || break
    sleep 0.1
done
at=$(sed -nE 's/.*ready on (http[^:]*:[^:]*:[0-9]+).*/\1/p' "$dir/serve")
curl -s "$at/v1/chat/completions" -H 'Content-Type: application/json' \
    -d '{"messages": [{"role": "user", "content": "Say all that you know."}], "max_tokens": 12, "temperature": 0}' >"$dir/reply"
is "a server answers the same" "$("$json" choices.0.message.content <"$dir/reply")" "$(on cpu -p 'Say all that you know.' | "$json" text)"
kill $server
wait $server
is "and ends well" $? 0
exit $bad
