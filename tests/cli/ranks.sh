# tests/cli/ranks.sh - sourced after lib.sh by the tests of tests/comm/ranks.c under mpirun. Sets build, ranks, SEED and what mpirun
# needs here; ends the test as skipped where there is no MPI.
build=$(dirname "$bin")
ranks=$build/tests/comm/ranks
if ! command -v mpirun >/dev/null || [[ ! -e $build/omnidrop-mpi.so ]]; then echo "ok - ranks # SKIP no MPI on this machine"; exit 0; fi
# What a container lets pass, and no mpirun that takes the whole job down with one rank. MPI itself leaks (not ours to test).
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 SEED=${SEED:-$RANDOM}
export OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
export ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0
echo "# SEED=$SEED"

# go NP LINES MPIRUN_OPTIONS.. -- MODE..: the program's lines; a 'not ok' where it hangs or does not say LINES times 'ok'.
go() {
    local np=$1 lines=$2 out status n; shift 2
    local opt=()
    while [[ $1 != -- ]]; do opt+=("$1"); shift; done
    shift
    rm -f "$dir/at"
    out=$(RANKS_AT=$dir/at timeout -k 5 "${LIMIT:-240}" mpirun "${opt[@]}" -np "$np" "$ranks" "$@" 2>&1); status=$?
    grep -E '^(ok|not ok|#) ' <<<"$out"
    n=$(grep -c '^ok ' <<<"$out")
    if grep -q '^not ok' <<<"$out"; then bad=1
    elif (( status != 0 || n != lines )); then
        not_ok "ranks $* with np $np: status $status, $n lines of $lines" "$(tail -n 15 <<<"$out")"
    fi
}
