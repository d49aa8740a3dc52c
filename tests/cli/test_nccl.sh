#!/bin/bash
# Tensors of devices between ranks. Goal: where each rank has a device of its own they go through NCCL, on the device's stream, with the
# same answers as through the host; a rank that dies, stops or does not come while others wait for their device is noticed; where
# devices are shared all goes through the host, and the start-up table says so.
# Method: backend and comm/nccl.c as they are over a CUDA and an NCCL of the tests (tests/kernels/fake_cuda.cpp, fake_nccl.c), which end
# the program where their rules are not kept.
. tests/cli/lib.sh
. tests/cli/ranks.sh
export OMNIDROP_LIB=$build/tests/simt SIMT_DEVICES=4

for np in 1 2 3; do go $np 2 -- device; done
SIMT_DEVICES=1 go 2 2 -- device
OMNIDROP_COMM=staged go 2 2 -- device
go 3 3 --enable-recovery -- device-death kill 2
go 2 2 --enable-recovery -- device-death stop 1
go 2 1 --enable-recovery -- device-late
FAKE_NCCL_FAIL=1 go 2 1 --enable-recovery -- device-fails

# A decoder in two parts: the same lines, errors to the last digit, as through the host.
tp2() { timeout 600 mpirun -np 2 "$build/tests/golden" --device cuda --threads 1 --tp 2 tests/goldens/odd-f16; }
tp2 >"$dir/nccl" 2>&1; is "two ranks with a device each: the reference cases" $? 0
SIMT_DEVICES=1 tp2 >"$dir/staged" 2>&1; is "two ranks on one device" $? 0
has() { if grep -qE "$2" "$3"; then ok "$1"; else not_ok "$1" "$(head -5 "$3")"; fi; }
has "the first go through NCCL" '^tensors between ranks: nccl: NCCL 2\.99\.1, CUDA' "$dir/nccl"
has "the second through the host" '^tensors between ranks: ranks 0 and 1 of host .* have one device .*: NCCL wants one each' "$dir/staged"
lines() { grep -vE '^(tensors between ranks|rank [0-9])' "$1"; }
is "and both say the same of every case" "$(lines "$dir/nccl")" "$(lines "$dir/staged")"
has "which are some" '^PASS .*logits' "$dir/nccl"
timeout 600 "$build/tests/golden" --device cuda --threads 1 --nccl tests/goldens/odd-f16 >"$dir/one" 2>&1
is "one rank through NCCL" $? 0
has "it says so" '^tensors between ranks: nccl' "$dir/one"

# The table at the start; a model that is not there ends it.
table() { timeout 120 mpirun -np 2 "$bin" batch --device cuda "$@" -t 1 -m "$dir/none" -i "$dir/none" -o "$dir/out" 2>&1; }
table --tp 2 >"$dir/table"
has "the start-up table names NCCL" '^.*2 ranks in 1 groups of 2; .*NCCL 2\.99\.1' "$dir/table"
has "and what sums go by" 'plays a GPU.* all-reduce [0-9]+ us, [0-9.]+ GB/s, nccl' "$dir/table"
SIMT_DEVICES=1 table --tp 2 >"$dir/table"
has "or why they go through the host" 'group 0: ranks 0 and 1 of host .* have one device' "$dir/table"
has "and at what speed" 'GB/s, mpi, host-staged' "$dir/table"
shopt -s nullglob
left=(/dev/shm/omnidrop-*)
is "nothing is left in /dev/shm" "${left[*]}" ""
exit $bad
