#!/bin/bash
# Goal: make gpu-check can be trusted on a machine that is had for ten minutes: every stage is run, what fails is named and the rest
# goes on, what a stage wrote stays when another is run alone; and the engine builds where libraries are missing and gives the same.
# Method: its driver without a GPU (--device simt) on what is built, at tiny sizes; a broken golden, a broken test program; the build
# with stand-ins for all libraries, fed with what the whole build made of the media. No time is compared with a number.
build=$(realpath "${OMNIDROP_BUILD:-build}")
. tests/cli/lib.sh
b=$dir/b
mkdir -p "$b/tests/kernels" && ln -s "$build/gpu_bench" "$b/" && ln -s "$build/tests/golden" "$b/tests/"
ln -s "$build/tests/kernels/test_cuda_select" "$build/tests/kernels/test_cuda_simt" "$b/tests/kernels/"
driver=(python3 tests/gpu/check.py --build "$b" --no-make)
get() { local IFS=$'\n'; "$json" "$@" <"$b/gpu-check.json" | tr '\n' ' '; }

if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    ok "there is a GPU here # SKIP"
else
    exits "no GPU is said, with the way without one" 2 'no GPU on this machine.*DEVICE=simt' "${driver[@]}"
fi
refuses "a stage that is not there" 2 "no stage 'golden'; there are: build kernels sanitizer" "${driver[@]}" --device simt --stage golden

# A folder without a checkpoint fails, by name; the stage behind it runs.
"${driver[@]}" --device simt --golden-device cpu --goldens "tests/goldens/odd-f16 tests/none" --stage "bench goldens" >"$dir/out" 2>&1
is "what fails is the exit status" $? 1
is "the failure is named" "$(grep -c '^    FAILED none: .*tests/none' "$dir/out")" 1
is "the last line names the stage" "$(tail -1 "$dir/out" | grep -cE '^1 stages passed, 1 failed: goldens, [0-9]+ s; .*gpu-check.json$')" 1
is "in order, with their seconds" "$(grep -oE '^   [a-z]+: (ok|FAILED), [0-9.]+ s$' "$dir/out" | sed 's/, .*//' | tr -d ' \n')" "goldens:FAILEDbench:ok"
is "both are in the JSON" "$(get stages.# stages.0.name stages.0.ok stages.1.name stages.1.ok)" "2 goldens false bench true "
is "goldens passed and failed" "$(get stages.0.rows.0.name stages.0.rows.0.failed stages.0.rows.1.name stages.0.rows.1.failed)" "odd-f16 0 none 1 "
is "with machine and versions" "$(get machine.mode machine.date machine.versions.gcc machine.versions.commit | awk '{ print $1, NF }')" "simt 4"
for name in "prefill 20k none" "prefill 20k omnidrop 30 %" "prefill 20k omnidrop 20 %" "KV 20k none" "decode 20k omnidrop 30 % B=8" \
            "attention, causal" "selection with diversity"; do
    is "a row: $name" "$(grep -cF "\"name\": \"$name\"" "$b/gpu-check.json")" 1
done
is "the Markdown has the rows" "$(grep -cE '^\| (odd-f16|prefill 20k none|attention, causal) \|' "$b/gpu-check.md")" 3

# A stage alone keeps what the others found. A test program that fails, one that crashes and one that is not there are three failures.
printf '#!/bin/sh\necho "not ok 1 - test_norm"\necho "ok 2 - test_pack"\nexit 1\n' >"$b/tests/kernels/test_cuda_rows"
printf '#!/bin/sh\nkill -SEGV $$\n' >"$b/tests/kernels/test_cuda_pages"
chmod +x "$b/tests/kernels/test_cuda_rows" "$b/tests/kernels/test_cuda_pages"
"${driver[@]}" --device simt --stage kernels --filter s >"$dir/out" 2>&1
is "kernels that fail" $? 1
is "are named" "$(grep -cE '^    FAILED test_cuda_(rows: test_norm|pages: exit status -11|scores: exit status 127: was not built)' "$dir/out")" 3
is "and one that passes is counted" "$(grep -cE '^    cuda_select +[1-9][0-9]* passed$' "$dir/out")" 1
is "the other stages are still there" "$(get stages.0.name stages.1.name stages.2.name)" "kernels goldens bench "
check "the stand-in's own test, as the sanitizer's stage" "${driver[@]}" --device simt --stage sanitizer
check "NCCL that was not built is said" "${driver[@]}" --device simt --stage nccl
is "as such" "$(get stages.4.name stages.4.skipped)" "nccl no NCCL headers beside CUDA's: nothing was built "
ln -s "$build/tests/simt" "$b/tests/"
check "one rank goes through the NCCL of the tests" "${driver[@]}" --device simt --stage nccl
is "with a decoder" "$(get stages.4.name stages.4.rows.0.name stages.4.rows.0.failed)" "nccl decoder through nccl 0 "

# Of several nvcc the first that the driver runs; where there is none, what there is and what is wanted.
mkdir -p "$dir/old" "$dir/new" && for v in old:12.8 new:13.1; do
    printf '#!/bin/sh\necho "Cuda compilation tools, release %s, V0"\n' "${v#*:}" >"$dir/${v%:*}/nvcc"; chmod +x "$dir/${v%:*}/nvcc"
done
pick() { NVCC=$1 PATH=$2:$PATH python3 -c "
import sys; sys.path.insert(0, 'tests/gpu'); import check
c = check.Check(check.argparse.Namespace(device='cuda', build='b')); c.driver_cuda = '$3'; p = c.nvcc()
print(p.replace('$dir', ''), c.nvcc_unfit)"; }
is "nvcc of the driver's release" "$(pick "$dir/new/nvcc" "$dir/old" 12.9)" "/old/nvcc "
is "the newer one where the driver runs it" "$(pick "$dir/new/nvcc" "$dir/old" 13.0)" "/new/nvcc "
if [[ $(pick "$dir/new/nvcc" "$dir/new" 11.4) == */new/nvcc\ nvcc\ 13.1,\ and\ the\ driver\ runs\ CUDA\ 11.4:* ]]; then ok "none that fits is said"
else not_ok "none that fits is said" "$(pick "$dir/new/nvcc" "$dir/new" 11.4)"; fi

# Floors: the numbers that were worked out beside the design, to their last digit.
is "floors of 20k" "$(python3 -c "
import sys; sys.path.insert(0, 'tests/gpu'); import floors as f
print(*(round(1e3 * x, 1) for x in (f.decoder(20000, 'none'), f.decoder(20000, 'omnidrop 30 %'), f.decoder(20000, 'omnidrop 20 %'),
    f.tower('video', 20000), f.tower('audio', 20000), f.prefill(20000, 'omnidrop 30 %', True), f.decode(20000, 'none', 8))))")" \
    "474.7 119.6 84.3 146.1 10.8 276.5 5.4"

# Without any library: the objects of the CPU's kernels know none, the rest is compiled without optimisation.
if nm "$build/base/err.o" | grep -qE "__(asan|tsan)_"; then
    ok "the build without libraries # SKIP"
    exit $bad
fi
mkdir -p "$b/bare/kernels" "$dir/pack" && cp -a "$build/kernels/cpu" "$b/bare/kernels/"
unset MAKEFLAGS MAKELEVEL MFLAGS
check "the build without libraries" make -j2 --no-print-directory BARE=1 "BUILD=$b" OPT_release=-O0 "$b/bare/tests/golden" "$b/bare/tests/kernels/test_norm"
[[ -x $b/bare/tests/golden ]] || exit 1
is "needs none" "$(ldd "$b/bare/tests/golden" | grep -cE 'av|jansson|pcre|utf8proc|event|curl|jemalloc|libz')" 0
check "the tests of kernels run on the stand-in of cmocka" "$b/bare/tests/kernels/test_norm"
check "what media become, packed" "$build/tests/golden" --threads 2 --make-pack "$dir/pack" tests/goldens/odd-shared tests/goldens/odd-f16
check "goldens from the pack" "$b/bare/tests/golden" --threads 2 --pack "$dir/pack" tests/goldens/odd-shared tests/goldens/odd-f16
is "none is left out" "$(grep -cE ' skipped$' "$dir/check") $(grep -cE '^[1-9][0-9]+ passed, 0 failed$' "$dir/check")" "0 1"
"$b/bare/tests/golden" --threads 2 --pack "$dir/none" tests/goldens/odd-shared >"$dir/out"
is "without a pack, what starts at ids alone" "$(grep -cE '^SKIP .*(no FFmpeg|cannot be split)' "$dir/out") $(grep -c '^FAIL' "$dir/out")" "5 0"
exit $bad
