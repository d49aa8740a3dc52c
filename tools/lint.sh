#!/bin/bash
# tools/lint.sh: the tree's own rules, clang-format on what is there, clang-tidy's bug patterns where it is installed.
set -u
bash tests/tidy/test_tree.sh | tee /dev/stderr | grep -q '^not ok' && status=1 || status=0
if command -v clang-tidy >/dev/null; then
    clang-tidy --quiet --checks='-*,bugprone-*,-bugprone-easily-swappable-parameters,-bugprone-narrowing-conversions,-bugprone-implicit-widening-of-multiplication-result,-bugprone-reserved-identifier,-bugprone-macro-parentheses,clang-analyzer-core*,clang-analyzer-unix*' \
        --warnings-as-errors='clang-analyzer-core*,clang-analyzer-unix*' \
        $(git ls-files 'base/*.c' 'kvcache/*.c' 'prune/*.c' 'model/*.c' 'engine/*.c') -- -std=gnu11 -D_GNU_SOURCE -I. \
        $(pkg-config --cflags jansson libpcre2-8 libutf8proc libavformat) 2>/dev/null || status=1
else
    echo "clang-tidy is not installed: skipped"
fi
exit $status
