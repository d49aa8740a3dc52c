#!/bin/bash
# Two hosts: network namespaces with names and addresses of their own, joined by one cable (veth), mpirun across them.
# Goal: the collectives work over TCP; when the cable is cut, the ranks of both sides know within silence + 2 s.
# Needs root (namespaces, interfaces): skipped where it cannot be had.
set -u
build=${OMNIDROP_BUILD:-build}
ranks=$(realpath "$build/tests/comm/ranks" 2>/dev/null)
if ! command -v mpirun >/dev/null || [[ ! -e $build/omnidrop-mpi.so ]]; then echo "ok - two hosts # SKIP no MPI on this machine"; exit 0; fi
a=od$$a; b=od$$b; net=10.$((RANDOM % 100 + 100)).$((RANDOM % 250))
dir=$(mktemp -d)
clean() {
    local ns
    for ns in $a $b; do
        ip netns pids $ns 2>/dev/null | xargs -r kill -9 2>/dev/null
        ip netns del $ns 2>/dev/null
    done
    rm -rf "$dir"
}
trap clean EXIT
if ! { ip netns add $a && ip netns add $b && ip link add $a type veth peer name $b && ip link set $a netns $a &&
       ip link set $b netns $b && ip -n $a addr add $net.1/24 dev $a && ip -n $b addr add $net.2/24 dev $b &&
       ip -n $a link set lo up && ip -n $b link set lo up && ip -n $a link set $a up && ip -n $b link set $b up &&
       ip netns exec $a unshare --uts sh -c 'hostname host-a'; } >"$dir/setup" 2>&1; then
    echo "ok - two hosts # SKIP no network namespaces here: $(tail -1 "$dir/setup")"
    exit 0
fi
# What stands for ssh: HOST COMMAND...
cat >"$dir/agent" <<AGENT
#!/bin/sh
shift
exec ip netns exec $b unshare --uts sh -c "hostname host-b; \$*"
AGENT
chmod +x "$dir/agent"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 SEED=${SEED:-$RANDOM}
export ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0
across() {                        # NP COMMAND...: half of the ranks on each host
    local np=$1; shift
    exec ip netns exec $a unshare --uts sh -c 'hostname host-a; exec "$@"' sh mpirun --mca plm_rsh_agent "$dir/agent" \
        --mca btl_vader_single_copy_mechanism none --bind-to none --host "$net.1:$((np / 2)),$net.2:$((np / 2))" --map-by slot \
        --enable-recovery -x SEED -x ASAN_OPTIONS -x RANKS_LOG -np "$np" "$@"
}

for np in 2 4; do
    (across $np timeout 200 "$ranks" calls) >"$dir/out" 2>&1; status=$?
    grep -E '^(ok|not ok|#) ' "$dir/out"
    if (( status != 0 || $(grep -c '^ok ' "$dir/out") != 9 )) && ! grep -q '^not ok' "$dir/out"; then
        echo "not ok - two hosts, np $np: status $status"; tail -n 15 "$dir/out" | sed 's/^/# /'
    fi
done

# Nothing comes in time on a machine with several times more to do than it has processors.
limit=$(awk -v n="$(nproc)" '{ print ($1 > 2 * n + 4 ? 5.5 : 3.5) }' /proc/loadavg)
now() { cut -d' ' -f1 /proc/uptime; }
for call in all_reduce take; do
    export RANKS_LOG=$dir/log-$call
    ip -n $a link set $a up
    sleep 0.5
    (across 4 "$ranks" link $call) >"$dir/out" 2>&1 &
    run=$!; disown
    for _ in {1..150}; do grep -q '^ok .*up with' "$RANKS_LOG" 2>/dev/null && break; sleep 0.2; done
    sleep 1
    ip -n $a link set $a down
    cut=$(now)
    for _ in {1..60}; do (( $(grep -c ' at ' "$RANKS_LOG") >= 4 )) && break; sleep 0.1; done
    grep '^not ok' "$RANKS_LOG"
    for r in 0 1 2 3; do
        at=$(sed -nE "s/^ok .* at ([0-9.]+) rank $r in .*/\1/p" "$RANKS_LOG")
        took=$(awk -v a="${at:-0}" -v c="$cut" 'BEGIN { printf "%.2f", a - c }')
        # silence is 1.5 s in ranks.c
        if [[ -n $at ]] && awk -v t="$took" -v l="$limit" 'BEGIN { exit !(t > -0.1 && t < l) }'; then
            echo "ok - link cut in $call: rank $r knows after $took s: $(sed -nE "s/^ok .* at [0-9.]+ rank $r in [^:]*: //p" "$RANKS_LOG")"
        else
            echo "not ok - link cut in $call: rank $r: ${at:-no word} (cut at $cut)"; tail -n 5 "$dir/out" | sed 's/^/# /'
        fi
    done
    kill $run 2>/dev/null
    for ns in $a $b; do ip netns pids $ns | xargs -r kill -9 2>/dev/null; done
done
