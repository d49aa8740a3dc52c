#!/bin/bash
# Goal: omnidrop transcribe under mpirun writes the bytes that one process writes: on two groups, on one group of two ranks, on two of two,
# after a group was killed or stopped among its windows, and after rank 0 was killed and the run resumed, by one process or by
# ranks. Method: two copies of a minute of speech and two short ones, in every format; a rank is killed when the journal has
# its first windows. A machine that was done before the kill is asked again.
. tests/cli/lib.sh
if ! command -v mpirun >/dev/null || [[ ! -e $(dirname "$bin")/omnidrop-mpi.so ]]; then ok "ranks # SKIP no MPI on this machine"; exit 0; fi
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_hwloc_base_binding_policy=none
export ASAN_OPTIONS=${ASAN_OPTIONS:-}:detect_leaks=0       # MPI itself leaks
cp tests/data/longform/speech.opus "$dir/long.opus"; cp "$dir/long.opus" "$dir/other.opus"
cp $demo/speech000.wav $demo/speech001.wav "$dir"
files=("$dir/speech000.wav" "$dir/long.opus" "$dir/speech001.wav" "$dir/other.opus")
plan=(transcribe --threads 1 --window 6 --overlap 1)

check "one process" "$bin" "${plan[@]}" -F all -o "$dir/one/" "${files[@]}"
check "two groups" mpirun -np 2 "$bin" "${plan[@]}" --dp 2 -F all -o "$dir/dp/" "${files[@]}"
check "write the same bytes" diff -r "$dir/one" "$dir/dp"
check "and the same to standard output" bash -c "mpirun -np 2 '$bin' ${plan[*]} --dp 2 -F srt '$dir/speech000.wav' 2>/dev/null |
    cmp - '$dir/one/speech000.srt'"
check "standard input" bash -c "mpirun -np 2 '$bin' ${plan[*]} --dp 2 -F srt - <'$dir/speech001.wav' 2>/dev/null |
    cmp - '$dir/one/speech001.srt'"
check "each window with the text before it" "$bin" "${plan[@]}" --condition-on-previous-text --end 20 -F tsv -o "$dir/prev.tsv" "$dir/long.opus"
check "on two groups" mpirun -np 2 "$bin" "${plan[@]}" --dp 2 --condition-on-previous-text --end 20 -F tsv -o "$dir/prev2.tsv" "$dir/long.opus"
check "the same" cmp "$dir/prev.tsv" "$dir/prev2.tsv"

# Partial sums of two ranks may differ in their last bits from those of one, so figures do; words do not.
check "one group of two ranks" mpirun -np 2 "$bin" "${plan[@]}" --tp 2 -F txt,srt,vtt -o "$dir/tp/" "${files[@]:0:2}"
for f in speech000.{txt,srt,vtt} long.{txt,srt,vtt}; do check "$f is the same" cmp "$dir/tp/$f" "$dir/one/$f"; done
check "two groups of two ranks" mpirun -np 4 "$bin" "${plan[@]}" --tp 2 --dp 2 -F txt,srt,vtt -o "$dir/tpdp/" "${files[@]:0:2}"
for f in speech000.{txt,srt,vtt} long.{txt,srt,vtt}; do check "$f is the same" cmp "$dir/tpdp/$f" "$dir/one/$f"; done

refuses "what is not there is refused before models are loaded" 3 'no-such.wav: No such file' \
    mpirun -np 2 "$bin" transcribe --dp 2 -o "$dir/none/" "$dir/no-such.wav"
refuses "ranks without a launcher" 2 'start mpirun -np 4' "$bin" transcribe --tp 2 --dp 2 "$dir/speech000.wav"

# begin NP OPTIONS...: in the background, with the table of ranks in $dir/log; pid_of RANK. mpirun itself ends with 0 whatever
# happens, so that ranks leave their status in a file, as docs/http-api.md 4.1 says.
begin() {
    local np=$1; shift
    rm -f "$dir"/status.*
    mpirun --enable-recovery -np "$np" sh -c '"$@"; echo $? >"$0.$OMPI_COMM_WORLD_RANK"' "$dir/status" \
        "$bin" "${plan[@]}" -j 2 -F all -o "$dir/cut/" "$@" "${files[@]}" >/dev/null 2>"$dir/log" &
    job=$!
}
pid_of() { awk -v r="$1" '$1 == "omnidrop:" && $2 == r && $5 ~ /^[0-9]+$/ { print $4; exit }' "$dir/log"; }
in_work() { kill -0 $job 2>/dev/null || return 0; [[ $(cat "$dir"/cut/*.odj 2>/dev/null | grep -c '"window"') -ge $1 ]]; }
gone() { ! kill -0 "$1" 2>/dev/null; }
told() { grep -qE "$1" "$dir/log"; }
end() { { wait $job; status=$?; } 2>/dev/null; rank0=$(cat "$dir/status.0" 2>/dev/null); }

for how in KILL STOP; do
    for ((try = 0; try < 5; try++)); do
        rm -rf "$dir/cut"
        begin 2 --dp 2
        wait_for in_work 4
        pid=$(pid_of 1)
        kill -$how "$pid" 2>/dev/null
        wait_for told 'group 1 is gone|other.opus: .* windows'
        [[ $how == STOP ]] && { wait_for gone "$(pid_of 0)"; kill -KILL "$pid" 2>/dev/null; }      # mpirun waits for it for ever
        end
        told 'group 1 is gone' && break
    done
    check "a group is lost among its windows ($how): the log names it" told 'group 1 is gone.*rank 1\b.*1 of 2 groups go on'
    is "the others do its windows" "$rank0" 0
    check "the same bytes" diff -r "$dir/one" "$dir/cut"
done

for with in alone ranks; do
    for ((try = 0; try < 5; try++)); do
        rm -rf "$dir/cut"
        begin 2 --dp 2
        wait_for in_work 4
        pid=$(pid_of 0) other=$(pid_of 1)
        kill -KILL "$pid" 2>/dev/null
        end
        [[ ! -e $dir/cut/long.srt || ! -e $dir/cut/other.srt ]] && break
    done
    check "rank 0 is killed: the other ends too" wait_for gone "$other"
    run=(); dp=(); [[ $with == ranks ]] && run=(mpirun -np 2) dp=(--dp 2)
    exits "and $with it goes on" 0 '[1-9][0-9]* from the journal' "${run[@]}" "$bin" "${plan[@]}" "${dp[@]}" -j 2 -F all -o "$dir/cut/" --resume "${files[@]}"
    check "to the same bytes" diff -r "$dir/one" "$dir/cut"
done

# Group 0 is what rank 0 is in: without it there is nobody.
for ((try = 0; try < 5; try++)); do
    rm -rf "$dir/cut"
    begin 2 --tp 2
    wait_for in_work 2
    kill -KILL "$(pid_of 1)" 2>/dev/null
    end
    [[ ! -e $dir/cut/long.srt || ! -e $dir/cut/other.srt ]] && break
done
is "a rank of the only group is killed: rank 0 fails" "$rank0" 1
is "which mpirun does not say" "$status" 0
check "it is named" told 'error: .*rank 1\b.*without which nothing goes on'
exits "one process goes on" 0 '[1-9][0-9]* from the journal' "$bin" "${plan[@]}" -j 2 -F txt,srt,vtt -o "$dir/cut/" --resume "${files[@]}"
for f in long.{txt,srt,vtt} other.srt; do check "$f is the same" cmp "$dir/cut/$f" "$dir/one/$f"; done
exit $bad
