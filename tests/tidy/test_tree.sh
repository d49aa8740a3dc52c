#!/bin/bash
# The walls of docs/architecture.md, checked on the text of the tree: who includes whom, where device switches may
# stand, that every op has a test, that nothing half done or private is in it, and that it stays small.
set -u
check() { if [[ -z $2 ]]; then echo "ok - $1"; else echo "not ok - $1"; printf '%s\n' "$2" | head -10; fi; }
files() { git ls-files -- "$@"; }

# Each folder may include itself and these.
declare -A may=(
    [base]="" [comm]="base kernels/ops.h" [kernels]="base" [kvcache]="base" [media]="base" [prune]="base kernels model/prompt.h"
    [model]="base comm kernels" [scheduler]="base kvcache prune model/prompt.h"
    [engine]="base comm kernels kvcache media prune model scheduler" [api]="base comm kernels media prune model engine"
    [http]="base media prune model engine api" [cli]="base comm kernels media prune model scheduler engine api http"
)
bad=""
for m in "${!may[@]}"; do
    for f in $(files "$m/*.c" "$m/*.h"); do
        for inc in $(grep -oE '^#include "[^"]+"' "$f" | cut -d'"' -f2); do
            [[ $inc == "$m"/* ]] && continue
            ok=""
            for a in ${may[$m]}; do [[ $inc == "$a" || $inc == "$a"/* ]] && ok=1; done
            [[ $ok ]] || bad+="$f includes $inc"$'\n'
        done
    done
done
check "include arrows point down" "$bad"

check "no instruction-set or device switches outside kernels/ and base/threads.c" \
    "$(grep -nE '^#\s*if.*(__AVX|__CUDA|ISA\b)' $(files 'base/*.c' 'kvcache/*' 'prune/*' 'model/*.c' 'scheduler/*' 'engine/*.c' 'api/*' 'http/*' 'cli/*'))"

ops=$(sed -n '/^struct ops {/,/^};/p' kernels/ops.h | sed -nE 's/^ *status \(\*([a-z_0-9]+)\)\(struct stream \*st, const struct.*/\1/p')
bad=""
for op in $ops; do
    grep -qE "(->|\.)$op\(" $(files 'tests/kernels/*.c' 'tests/kernels/*.h') || bad+="no test calls ops->$op"$'\n'
done
check "every op has a test" "$bad"

check "no allocation by hand in the decoder's layers" "$(sed -n '/^status decoder_kv/,/^status decoder_logits/p' model/decoder.c | grep -nE 'malloc|calloc|mem_alloc')"
check "nothing promises work that is not done" "$(grep -nE 'TO''DO|FIX''ME|XX''X( |:|$)' $(files '*.c' '*.h' '*.sh' '*.py' Makefile))"
check "no absolute paths of a machine" "$(grep -nE '(^|[^A-Za-z0-9_])/(work|farm|root|home)/' $(files '*.c' '*.h' '*.sh' '*.py' '*.md' Makefile .ci/run))"
check "lines of C are at most 140 wide" "$(awk 'length($0) > 140 { print FILENAME ":" FNR }' $(files '*.c' '*.h' | grep -v unicode_tables))"
size=$(files | tr '\n' '\0' | du -cb --files0-from=- | tail -1 | cut -f1)
check "the tree is under 40 MB ($((size / 1000000)) MB)" "$([[ $size -lt 40000000 ]] || echo "$size bytes")"
