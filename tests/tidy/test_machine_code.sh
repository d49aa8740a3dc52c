#!/bin/bash
# The machine code that nvcc made of kernels/cuda/, for each GPU: matrix instructions are there in the number that the tiles call
# for, every kernel keeps its values in registers (nothing in local memory). Nothing to see where there is no nvcc.
set -u
build=${OMNIDROP_BUILD:-build}
if ! compgen -G "$build/kernels/cuda/*.code/*.cubin" >/dev/null; then
    echo "ok - machine code # SKIP this build has no kernels for CUDA (no nvcc)"
    exit 0
fi

# kernel<head dim / 16>: matrix products and ldmatrix of one tile, whole multiples of which are there when a loop is unrolled.
declare -A want=(
    [prefill_kernelILi8]="128 64" [prefill_kernelILi4]="64 32" [decode_kernelILi8]="32 16" [decode_kernelILi4]="16 8"
    [stats_kernelILi8]="64 32" [stats_kernelILi4]="32 16" [scores_kernelILi8]="16 4" [scores_kernelILi4]="8 2"
    [segments_kernelILi8]="128 64" [segments_kernelILi5]="80 40" [segments_kernelILi4]="64 32"
)
for gpu in 80 86 89 90a; do
    bad="" seen=""
    for cu in kernels/cuda/*.cu; do
        f=$(basename "$cu" .cu)
        [[ -e $build/kernels/cuda/$f.code/$f.compute_$gpu.cubin ]] || bad+="$cu was not compiled for sm_$gpu"$'\n'
    done
    while read -r _ kernel _ hmma _ ldmatrix _ local; do
        [[ ${local#*=} == 0 ]] || bad+="$kernel has values in local memory"$'\n'
        for k in "${!want[@]}"; do
            [[ $kernel == *$k* ]] || continue
            read -r products loads <<<"${want[$k]}"
            seen+=" $k"
            h=${hmma#*=} l=${ldmatrix#*=}
            (( h > 0 && h % products == 0 && l >= loads )) || bad+="$kernel: $h products and $l loads, not $products and $loads"$'\n'
        done
    done < <(python3 tools/sass.py "$build"/kernels/cuda/*.code/*.compute_"$gpu".cubin)
    for k in "${!want[@]}"; do [[ " $seen " == *" $k "* ]] || bad+="no kernel $k"$'\n'; done
    if [[ -z $bad ]]; then echo "ok - machine code for sm_$gpu"; else echo "not ok - machine code for sm_$gpu"; printf '%s' "$bad"; fi
done
