#!/bin/bash
# The machine code that nvcc made of kernels/cuda/, for each GPU: matrix instructions are there in the number that the tiles call
# for, every kernel keeps its values in registers (nothing in local memory). For sm_90a: products of warpgroups, bulk copies, no wait
# that the source has not (the assembler would have put them one behind the other), and exponentials beside the second product.
# Nothing to see where there is no nvcc.
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
# hopper_kernel<bands>: products, those of the loop (64 rows, 128 keys), bulk copies (K by bands, V by pages), waits, exponentials.
declare -A hopper=(
    [hopper_kernelILi2]="32 16 6 4 64" [hopper_kernelILi1]="24 12 4 4 64" [hopper_stats_kernelILi2]="8 8 4 1 0"
    [hopper_stats_kernelILi1]="4 4 2 1 0" [hopper_scores_kernelILi2]="8 8 2 1 0" [hopper_scores_kernelILi1]="4 4 2 1 0"
)

# What the line of sass.py has under this name.
field() { sed -E "s/.* $1=([0-9]+).*/\1/" <<<"$line"; }
for gpu in 80 86 89 90a; do
    bad="" seen=""
    for cu in kernels/cuda/*.cu; do
        f=$(basename "$cu" .cu)
        [[ -e $build/kernels/cuda/$f.code/$f.compute_$gpu.cubin ]] || bad+="$cu was not compiled for sm_$gpu"$'\n'
    done
    while read -r line; do
        read -r _ kernel _ <<<"$line"
        [[ $(field local) == 0 ]] || bad+="$kernel has values in local memory"$'\n'
        for k in "${!want[@]}"; do
            [[ $kernel == *$k* ]] || continue
            read -r products loads <<<"${want[$k]}"
            seen+=" $k"
            h=$(field hmma) l=$(field ldmatrix)
            (( h > 0 && h % products == 0 && l >= loads )) || bad+="$kernel: $h products and $l loads, not $products and $loads"$'\n'
        done
        for k in "${!hopper[@]}"; do
            [[ $gpu == 90a && $kernel == *$k* ]] || continue
            seen+=" $k"
            read -r products each bulk waits beside <<<"${hopper[$k]}"
            (( $(field hgmma) == products && $(field loop.hgmma) == each && $(field bulk) == bulk && $(field waits) == waits &&
               $(field beside) >= beside )) || bad+="${line#* } does not have ${hopper[$k]} of hgmma, loop.hgmma, bulk, waits, beside"$'\n'
        done
    done < <(python3 tools/sass.py "$build"/kernels/cuda/*.code/*.compute_"$gpu".cubin)
    [[ $gpu != 90a ]] || for k in "${!hopper[@]}"; do [[ " $seen " == *" $k "* ]] || bad+="no kernel $k"$'\n'; done
    for k in "${!want[@]}"; do [[ " $seen " == *" $k "* ]] || bad+="no kernel $k"$'\n'; done
    if [[ -z $bad ]]; then echo "ok - machine code for sm_$gpu"; else echo "not ok - machine code for sm_$gpu"; printf '%s' "$bad"; fi
done
