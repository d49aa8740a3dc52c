#!/bin/sh
# Builds the fuzz targets with clang's libFuzzer, ASan and UBSan into build/fuzz and runs each for FUZZ_SECONDS (60).
#   tests/fuzz/run.sh [NAME...]        all of tests/fuzz/fuzz_NAME.c, or those named
# FUZZ_OUT names another folder than build/fuzz. Each prints one line: name, executed inputs, seconds. A finding
# stops the run with exit 1; the input that made it is left in build/fuzz/found-NAME-*. The corpus grows in
# build/fuzz/corpus-NAME, starting from tests/fuzz/seeds/NAME.
set -eu
cd "$(dirname "$0")/../.."
seconds=${FUZZ_SECONDS:-60}
out=${FUZZ_OUT:-build/fuzz}
clang=${CLANG:-$(command -v clang-14 || command -v clang || true)}
if [ -z "$clang" ]; then
    echo "fuzz: no clang on this machine: apt-get install clang, or name one in CLANG" >&2
    exit 2
fi
pkgs="jansson libpcre2-8 libutf8proc libavutil"
sources="base/err.c base/mem.c base/json.c model/safetensors.c model/config.c model/checkpoint.c
         model/normalize.c model/tokenizer.c model/tokenizer_load.c model/detokenizer.c model/chat.c
         http/reader.c http/multipart.c http/event.c
         media/digest.c api/jsonl.c api/batch.c api/batch_state.c api/error.c"
flags="-std=gnu11 -D_GNU_SOURCE -I. -O1 -g -fno-omit-frame-pointer -fsanitize=fuzzer,address,undefined
       -fno-sanitize-recover=undefined"

[ $# -gt 0 ] || set -- $(ls tests/fuzz/fuzz_*.c | sed 's|.*/fuzz_||; s|\.c$||')
mkdir -p "$out"
# A target names what it needs beside these in its first comment: " * Sources: FILES", " * Packages: NAMES".
named() { sed -n "s|^ \\* $1: \\([^*]*\\).*|\\1|p" "tests/fuzz/fuzz_$2.c"; }
for name; do
    all="$pkgs $(named Packages "$name")"
    # shellcheck disable=SC2046,SC2086
    "$clang" $flags $(pkg-config --cflags $all) -o "$out/$name" "tests/fuzz/fuzz_$name.c" $sources \
        $(named Sources "$name") $(pkg-config --libs $all) -lhttp_parser -lm
done
for name; do
    mkdir -p "$out/corpus-$name"
    dict=tests/fuzz/$name.dict
    # shellcheck disable=SC2086
    if ! "$out/$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=16384 -print_final_stats=1 \
        -artifact_prefix="$out/found-$name-" $([ -f "$dict" ] && echo "-dict=$dict") \
        "$out/corpus-$name" "tests/fuzz/seeds/$name" >"$out/$name.log" 2>&1; then
        tail -40 "$out/$name.log"
        echo "fuzz $name: a finding, see $out/$name.log"
        exit 1
    fi
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$out/$name.log")
    took=$(sed -n 's/^Done [0-9]* runs in \([0-9]*\) second.*/\1/p' "$out/$name.log")
    echo "fuzz $name: $runs inputs in $took s, no finding"
done
