#!/bin/bash
# Ranks on one host under mpirun (tests/comm/ranks.c): every call with 1 to 4 of them, through shared memory and through
# MPI's messages; mixed builds; CPUs shared out; one that comes late; one killed, stopped or ended by itself inside each call. Goal:
# right bits everywhere, and never a call that hangs.
. tests/cli/lib.sh
. tests/cli/ranks.sh

for np in 1 2 3 4; do go $np 9 -- calls; done
OMNIDROP_COMM=wire go 2 9 -- calls
OMNIDROP_COMM=wire go 3 9 --mca btl tcp,self -- calls
go 3 3 -- builds
for np in 2 3; do go $np 1 -- cpus; done
go 2 1 --bind-to core:overload-allowed -- cpus

LIMIT=60
go 3 4 --enable-recovery -- late
for call in all_reduce all_reduce_short all_gather gather broadcast barrier split send post take; do
    go 3 2 --enable-recovery -- death kill $call 2
    go 3 2 --enable-recovery -- death stop $call 1
done
for call in all_reduce gather broadcast barrier; do
    OMNIDROP_COMM=wire go 3 2 --enable-recovery -- death kill $call 1
    OMNIDROP_COMM=wire go 3 2 --enable-recovery -- death stop $call 2
done
go 3 2 --enable-recovery --mca btl tcp,self -- death kill post 1
# Rank 0 is whom all others hear of deaths from.
go 3 2 --enable-recovery -- death kill all_reduce 0
go 3 2 --enable-recovery -- death stop take 0
go 4 3 --enable-recovery -- death exit all_gather 3
go 3 3 --enable-recovery -- death cont all_reduce 2
go 4 6 --enable-recovery -- groups kill
go 4 6 --continuous -- groups stop

# Without --enable-recovery one that is killed takes the job along, and mpirun says so.
start=$SECONDS
timeout 30 mpirun -np 3 "$ranks" death kill barrier 2 >/dev/null 2>&1; status=$?
if (( status != 0 && status != 124 && SECONDS - start < 15 )); then echo "ok - mpirun alone ends a job that lost a rank, status $status"
else echo "not ok - mpirun alone: status $status after $((SECONDS - start)) s"; fi

# No library, no ranks: a reason.
out=$(OMNIDROP_LIB=/nowhere timeout 30 mpirun -np 2 "$ranks" calls 2>&1)
if [[ $out == *"one of 2 ranks, but MPI cannot be loaded: omnidrop-mpi.so: not beside the program"* ]]; then echo "ok - a launcher without our MPI is refused"
else echo "not ok - a launcher without our MPI: $out"; fi
shopt -s nullglob
left=(/dev/shm/omnidrop-*)
if (( ${#left[@]} == 0 )); then echo "ok - nothing is left in /dev/shm"; else echo "not ok - left: ${left[*]}"; fi
