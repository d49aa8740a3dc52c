#!/bin/bash
# tests/run.sh BUILD [FILTER]: every test program, golden and vector file, then the command line's tests. Prints what
# failed in full, one line for what passed, and ends with 'N passed, N failed'. FILTER keeps paths that hold it.
set -u
build=$1; filter=${2:-}
passed=0; failed=0
log=$(mktemp); trap 'rm -f "$log"' EXIT
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:allocator_may_return_null=1} UBSAN_OPTIONS=print_stacktrace=1
export CMOCKA_MESSAGE_OUTPUT=TAP OMNIDROP="$build/omnidrop" OMNIDROP_BUILD="$build"

# run NAME COUNT_OK COUNT_BAD COMMAND...: counts lines that match (not those that a sanitizer makes skip), adds one failure where the status says so and no line does.
run() {
    local name=$1 ok_re=$2 bad_re=$3; shift 3
    [[ -n $filter && $name != *"$filter"* ]] && return
    local start=$SECONDS status ok bad
    timeout "${TEST_TIMEOUT:-900}" "$@" >"$log" 2>&1; status=$?
    ok=$(grep -cE "$ok_re" "$log"); bad=$(grep -E "$bad_re" "$log" | grep -vc '# SKIP')
    if (( status != 0 && bad == 0 )); then bad=1; fi
    if (( status == 0 && ok == 0 )); then bad=1; echo "$name ran no test" >>"$log"; fi
    passed=$((passed + ok)); failed=$((failed + bad))
    printf '%-58s %5d passed %3d failed  %3d s\n' "$name" "$ok" "$bad" $((SECONDS - start))
    if (( bad )); then echo "--- $name: exit status $status"; tail -n 60 "$log"; echo "---"; fi
}

for t in tests/*/test_*.c; do
    name=${t%.c}
    run "$name" '^ok ' '^not ok ' "$build/$name"
done
run tests/vectors '^PASS ' '^FAIL ' "$build/tests/vectors" tests/data/vectors/*.json
for d in tests/goldens/*/; do
    [[ -d $d/checkpoint ]] && run "tests/golden ${d%/}" '^PASS ' '^FAIL ' "$build/tests/golden" "${d%/}"
done
# The CUDA backend on the CPU, thread for thread: the odd sizes, with every policy.
for d in tests/goldens/odd tests/goldens/odd-f16; do
    run "tests/golden $d as CUDA" '^PASS ' '^FAIL ' "$build/tests/golden" --device simt --threads 1 "$d"
done
run "tests/golden tests/goldens/odd-f16 as CUDA in bf16" '^PASS ' '^FAIL ' "$build/tests/golden" --device simt --threads 1 --dtype bf16 \
    tests/goldens/odd-f16
# Heads of 64 dims, and the kernels for sm_90a beside the portable ones.
for compute in 80 90; do
    run "tests/golden tests/goldens/wide as sm_$compute in bf16" '^PASS ' '^FAIL ' env SIMT_COMPUTE=$compute "$build/tests/golden" --device simt \
        --threads 1 --dtype bf16 tests/goldens/wide
done
run "tests/kernels/test_table as sm_90" '^ok ' '^not ok ' env SIMT_COMPUTE=90 "$build/tests/kernels/test_table"
# The same on ranks, which are processes: the odd ones have 3 query heads and one KV head, and vocabularies of no round number.
if [[ -e $build/omnidrop-mpi.so ]] && command -v mpirun >/dev/null; then
    ranks=(env OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_btl_vader_single_copy_mechanism=none
           OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none "ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0"
           OMNIDROP_LIB="$build" mpirun)          # MPI itself leaks
    for d in tests/goldens/*/; do
        [[ -d $d/checkpoint ]] || continue
        sizes="2 4"; [[ $d == */odd* ]] && sizes="2 3"; [[ $d == */wide* ]] && sizes="2"
        for tp in $sizes; do
            run "tests/golden ${d%/} on $tp ranks" '^PASS ' '^FAIL ' "${ranks[@]}" -np "$tp" "$build/tests/golden" \
                --threads 1 --tp "$tp" "${d%/}"
        done
    done
fi
for s in tests/cli/test_*.sh; do
    [[ -e $s ]] && run "$s" '^ok ' '^not ok ' bash "$s"
done
for s in tests/serve/test_*.py; do
    [[ -e $s ]] && run "$s" '^ok ' '^not ok ' build/venv/bin/python "$s"
done
for s in tests/quality/test_*.py; do
    [[ -e $s ]] && run "$s" '^ok ' '^not ok ' build/venv/bin/python "$s"
done
for s in tests/tidy/test_*.sh; do
    [[ -e $s ]] && run "$s" '^ok ' '^not ok ' bash "$s"
done
echo "$passed passed, $failed failed"
(( failed == 0 ))
