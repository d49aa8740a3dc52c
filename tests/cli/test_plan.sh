#!/bin/bash
# Goal: bench plan says what a cluster would do, from profiles and traces that it checks; bench profile writes such a
# profile. Method: small simulations of known proportions; counts, orders and shares of what is printed, never a time
# against a clock; every refusal names what is wrong.
. tests/cli/lib.sh
p=("$bin" bench plan -q --simulate-groups 2)
get() { local IFS=$'\n'; "$json" "$@" <"$dir/r.json" | tr '\n' ' '; }

"${p[@]}" --requests 100 --retention 0.3 --json >"$dir/r.json" 2>"$dir/err" || not_ok "a plan" "$(cat "$dir/err")"
is "none beside omnidrop" "$(get runs.# runs.{0,1}.policy)" "2 none omnidrop "
is "of a computed profile" "$(get profile measured model)" "h200 false Qwen2.5-Omni-7b "
is "pages: those of a minute of film, 28 layers" "$(get runs.0.pages_of_a_request)" "$("$json" runs.0.pages_unpruned <"$dir/r.json") "
is "10244 tokens are 161 pages a layer" "$(get runs.0.pages_of_a_request | awk '{ print $1 == 28 * 161 }')" 1
is "more at once, as the pages say" "$(get runs.{0,1}.{at_once_max,pages_of_a_request} | awk '{ r = ($3 / $1) / ($2 / $4); print (r > 0.99 && r < 1.01) }')" 1
is "memory is full" "$(get runs.{0,1}.first_limit)" "memory memory "
is "percentiles ascend" "$(get runs.0.first_token_s.{p50,p90,p99} | awk '{ print ($1 > 0 && $1 <= $2 && $2 <= $3) }')" 1
first=$(get runs.0.requests_per_s runs.1.requests_per_s)
"${p[@]}" --requests 100 --retention 0.3 --json >"$dir/r.json"
is "the same seed, the same figures" "$(get runs.0.requests_per_s runs.1.requests_per_s)" "$first"

"${p[@]}" --requests 60 --gpus 2,8 --tp 2 --rate 0.5 --policy none >"$dir/table" 2>&1
is "a table of every size" "$(grep -cE '^ +[28] none' "$dir/table")" 2
is "which says what was simulated" "$(grep -c '2 of 4 groups simulated' "$dir/table")" 1
is "and that nothing was measured" "$(grep -c 'nothing measured' "$dir/table")" 1
is "little load has no limit" "$(grep -cE 'none \(' "$dir/table")" 2
"${p[@]}" --requests 60 --gpus 8 --tp 2 --rate 0.5 --policy none --json >"$dir/r.json"
is "all that come are served" "$(get runs.0.requests_per_s | awk '{ print ($1 > 3 && $1 < 5) }')" 1
is "ranks reduce" "$(get runs.0.all_reduce runs.0.groups | awk '{ print ($1 > 0 && $2 == 4) }')" 1

printf '%s\n' '{"seconds": 20, "prompt": 30, "output": 5, "media": "a"}' '' '{"prompt": 200, "output": 9, "max_tokens": 40}' \
    '{"seconds": 30, "video": false, "output": 3, "media": 7}' >"$dir/t.jsonl"
"${p[@]}" --trace "$dir/t.jsonl" --requests 60 --clients 4 --json -m 3b --profile a100 >"$dir/r.json"
is "a trace" "$(get model runs.0.clients runs.0.shapes_too_large)" "Qwen2.5-Omni-3b 4 0 "
is "media that come again are encoded once" "$(get runs.0.media_cached | awk '{ print ($1 > 0.9) }')" 1
is "and their prompts begin with each other's pages" "$(get runs.{0,1}.prefix_found | awk '{ print ($1 > 0.9 && $2 > 0.9) }')" 1
"${p[@]}" --trace "$dir/t.jsonl" --requests 60 --clients 4 --media-cache 0 --json >"$dir/r.json"
is "unless nothing is kept" "$(get runs.0.media_cached)" "0.0 "
"${p[@]}" --trace "$dir/t.jsonl" --requests 60 --clients 4 --prefix-cache 0 --json >"$dir/r.json"
is "unless nothing is shared" "$(get runs.0.prefix_found)" "0.0 "
printf '%s\n' '{"seconds": 20, "output": 40, "n": 4, "priority": 5}' '{"prompt": 200, "output": 4, "priority": -1}' >"$dir/t.jsonl"
"${p[@]}" --trace "$dir/t.jsonl" --requests 60 --clients 40 --max-num-seqs 4 --policy none --json >"$dir/r.json"
is "choices and priorities: who is less urgent is dropped and comes again" "$(get runs.0.preempted runs.0.requests_per_s | awk '{ print ($1 > 0 && $2 > 0) }')" 1

"${p[@]}" --profile h100 --show-profile >"$dir/p.json"
"${p[@]}" --profile h100 --requests 40 --json >"$dir/r.json"; first=$(get runs.1.requests_per_s)
"${p[@]}" --profile "$dir/p.json" -m 7b --requests 40 --json >"$dir/r.json"
is "a profile as a file is the same" "$(get runs.1.requests_per_s)" "$first"
"${p[@]}" --gpus 4096 --requests 30 --rate 4 --policy none --json >"$dir/r.json"
is "one front end does not serve 4096" "$(get runs.0.first_limit | grep -c 'the front end')" 1

refuses "no such profile" 2 'neither h200, h100 or a100 nor a file' "${p[@]}" --profile b100
refuses "no such mix" 2 'minute-clips, ten-minute-films' "${p[@]}" --mix talks
refuses "groups that are not whole" 2 'no whole number of groups of --tp 4' "${p[@]}" --gpus 6 --tp 4
refuses "sizes that are none" 2 'numbers of devices' "${p[@]}" --gpus 4,x
refuses "two loads" 2 'exclude each other' "${p[@]}" --rate 1 --clients 2
refuses "weights without room" 2 'no room for pages' "${p[@]}" --profile h100 --memory-utilization 0.2
refuses "a size of film" 2 'as 640x360' "${p[@]}" --frame 3
refuses "words" 2 'takes options only' "${p[@]}" now
refuses "no such trace" 3 'none.jsonl' "${p[@]}" --trace "$dir/none.jsonl"
echo '{"seconds": "long"}' >"$dir/bad.jsonl"
refuses "a trace with a wrong line" 3 'line 1: seconds: a number' "${p[@]}" --trace "$dir/bad.jsonl"
echo '{"second": 3}' >"$dir/bad.jsonl"
refuses "a trace with an unknown key" 3 'line 1: second: no such key' "${p[@]}" --trace "$dir/bad.jsonl"
echo '{"n": 0}' >"$dir/bad.jsonl"
refuses "a trace that asks for no answer" 3 'line 1: n: a number from 1' "${p[@]}" --trace "$dir/bad.jsonl"
echo '{"gemm_flops": [[2, 1], [1, 1]]}' >"$dir/bad.json"
refuses "a profile out of order" 3 'pair 1: rows must ascend' "${p[@]}" --profile "$dir/bad.json"
echo '{"gemm": 1}' >"$dir/bad.json"
refuses "a profile with an unknown key" 3 'gemm: no such key' "${p[@]}" --profile "$dir/bad.json"
exits "nothing fits" 7 'the smallest request needs' "${p[@]}" --kv-bytes 10000000 --policy none

check "a measured profile" "$bin" bench profile -q --max-model-len 300 -o "$dir/m.json"
is "has rates of everything" "$("$json" measured device_threads gemm_flops.0.1 decode_flops.0.1 vision_flops audio_flops <"$dir/m.json" |
    awk 'NR == 1 { ok = $1 == "true" } NR > 1 { ok = ok && $1 > 0 } END { print ok, NR }')" "1 6"
check "and plans with it" "${p[@]}" --profile "$dir/m.json" --mix transcription --requests 20 --clients 3
refuses "a file that is there" 2 'exists: -y replaces it' "$bin" bench profile -q -o "$dir/m.json"
exit $bad
