#!/bin/bash
# tools/lint.sh [FILE.c...]: the tree's own rules, shellcheck on the scripts, clang-tidy on the C files (all, or those
# named); a tool that is not installed is named and skipped. How many files clang-format would change is said, not held
# against the tree (`make format`). Exit status 1 where something was found.
set -u
cd "$(dirname "$0")/.." || exit 2
status=0

rules=$(bash tests/tidy/test_tree.sh)
printf '%s\n' "$rules"
grep -q '^not ok' <<<"$rules" && status=1

if command -v shellcheck >/dev/null; then
    git ls-files -z '*.sh' .ci/run | xargs -0 shellcheck --severity=warning --exclude=SC2046 || status=1
else
    echo "shellcheck is not installed: skipped"
fi

if command -v clang-format >/dev/null; then
    n=0
    while read -r f; do
        clang-format --dry-run -Werror "$f" >/dev/null 2>&1 || n=$((n + 1))
    done < <(git ls-files '*.c' '*.h')
    echo "clang-format would change $n files"
fi

# The analyzer's paths and the bug patterns; not the advice that C idiom answers with a cast or another name, nor
# branches with equal bodies (tables in switch form), nor whole halves and arrays of pointers, which are meant.
checks='-*,clang-analyzer-core*,clang-analyzer-unix*,clang-analyzer-deadcode*,bugprone-*'
for off in easily-swappable-parameters narrowing-conversions implicit-widening-of-multiplication-result \
           reserved-identifier macro-parentheses branch-clone assignment-in-if-condition sizeof-expression integer-division \
           not-null-terminated-result misplaced-widening-cast signal-handler; do
    checks+=",-bugprone-$off"
done
if command -v clang-tidy >/dev/null; then
    if (( $# == 0 )); then
        # kernels/cpu/isa*.c are compiled once for each instruction set, through -DISA: not on their own; stream.c
        # asks gcc for processor features that this clang has no names for.
        mapfile -t files < <(git ls-files 'base/*.c' 'comm/*.c' 'kernels/*.c' 'kvcache/*.c' 'media/*.c' 'prune/*.c' 'model/*.c' \
                                          'engine/*.c' | grep -vE '^kernels/cpu/(isa|stream)|^comm/(mpi|nccl)')
    else
        files=("$@")
    fi
    read -ra cflags < <(pkg-config --cflags libavformat libavcodec libswscale libswresample libavutil jansson \
                                   libpcre2-8 libutf8proc)
    found=0
    for f in "${files[@]}"; do
        said=$(clang-tidy --quiet --checks="$checks" "$f" -- -std=gnu11 -D_GNU_SOURCE -I. "${cflags[@]}" 2>/dev/null)
        [[ -n $said ]] || continue
        printf '%s\n' "$said"
        # The analyzer works file by file and cannot know that a status of OK means that *out was written, so what
        # its core.* says of unset values is shown and does not fail.
        grep -E '(warning|error):' <<<"$said" | grep -qv 'clang-analyzer-core' && found=$((found + 1))
    done
    echo "clang-tidy: ${#files[@]} files, $found with findings that fail"
    (( found == 0 )) || status=1
else
    echo "clang-tidy is not installed: skipped"
fi
exit $status
