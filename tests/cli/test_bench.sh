#!/bin/bash
# Goal: bench latency measures what it says, and refuses what it cannot measure. Method: short runs of the bundled model;
# counts and orders of what is printed, never a time against a number; files written whole or not at all.
. tests/cli/lib.sh
b=("$bin" bench latency -q --num-iters 2 --warmup 0)
get() { local IFS=$'\n'; "$json" "$@" <"$dir/r.json" | tr '\n' ' '; }

check "random text" "${b[@]}" --input-len 37 --output-len 3 --batch-size 2 --json --result-file "$dir/r.json"
is "its counts" "$(get batch_size output_len num_iters runs.# runs.0.label runs.0.prompt_tokens runs.0.av_tokens)" "2 3 2 1 none 37 0 "
is "all pages" "$(get runs.0.kv_pages)" "$(get runs.0.kv_pages_unpruned)"
is "percentiles ascend, and parts are less than the whole" "$(get runs.0.{ttft,e2e}_ms.{p50,p90,p99} runs.0.prefill_ms.p50 |
    awk '{ print ($1 <= $2 && $2 <= $3 && $4 <= $5 && $5 <= $6 && $1 < $4 && $7 <= $1 && $7 > 0) }')" 1
is "memory in bytes" "$(get runs.0.peak_memory_bytes | awk '{ print ($1 > 1000000 && $1 < 1e10) }')" 1
is "the other name of the length" "$("${b[@]}" --prompt-tokens 9 --output-len 1 --json | "$json" runs.0.prompt_tokens)" 9
is "one token has no time between tokens" "$("${b[@]}" --output-len 1 | grep -cE '^  ITL +-$')" 1

"${b[@]}" --video $demo/av000.mp4 --output-len 2 --sweep retention=0.5,0.4 --result-file "$dir/r.json" -y >"$dir/table"
is "a sweep" "$(get runs.{0,1,2}.label)" "none omnidrop retention=0.5 omnidrop retention=0.4 "
is "prunes more and more" "$(get runs.{0,1,2}.{mean_retention,kv_pages} |
    awk '{ print ($1 == 1 && $3 > 0.45 && $3 < 0.55 && $5 > 0.35 && $5 < 0.45 && $2 > $4 && $4 > $6) }')" 1
is "of the same prompt" "$(get runs.{0,1,2}.{prompt_tokens,av_tokens} | awk '{ print ($1 == $3 && $3 == $5 && $2 == $4 && $4 == $6 && $2 > 0) }')" 1
is "the seconds of the film" "$(get runs.0.media_seconds | awk '{ print ($1 > 0.5 && $1 < 60) }')" 1
is "the table names every run" "$(grep -cE '^(none|omnidrop retention=0\.[54]): ' "$dir/table")" 3
is "and compares with the first" "$(grep -c '^  against none: TTFT' "$dir/table")" 2
is "nothing half is left" "$(ls "$dir" | grep -c part)" 0

refuses "what is to be measured" 2 'omnidrop bench latency' "$bin" bench -q
refuses "another measurement" 2 'bench serve: this build measures "latency" and "profile"' "$bin" bench -q serve
refuses "a file that is there" 2 'exists: -y replaces it' "${b[@]}" --result-file "$dir/r.json"
refuses "a length beside media" 2 '--input-len is for prompts of random text' "${b[@]}" --audio $demo/phrase000.wav --input-len 9
refuses "a sweep of nothing" 2 '--sweep retention: give an option' "${b[@]}" --sweep retention
refuses "a sweep of an unknown option" 2 'bogus' "${b[@]}" --sweep bogus=1
refuses "a value out of range, before the first run" 2 'omnidrop retention=0.01: .*cannot be reached' "${b[@]}" \
    --video $demo/av000.mp4 --sweep retention=0.5,0.01
refuses "no such file" 3 'none.mp4' "${b[@]}" --video none.mp4
refuses "over the context" 2 'the context holds' "${b[@]}" --input-len 1000000
exits "a folder that is not there" 1 'cannot be written' "${b[@]}" --output-len 1 --result-file "$dir/no/r.json"
exit $bad
