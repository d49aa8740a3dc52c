#!/bin/bash
# Goal: a sound much longer than a window comes out whole: the words at the seams as right as the others, times that are
# the truth's, and the same bytes after SIGKILL and --resume. Method: 75 s of held-out speech with pauses under 0.2 s, so
# that clean and hard cuts occur (tools/quality/longform.py make --bitrate 36k --seconds 75 --seed 21 --most-gap 0.2), and
# its truth to the sample. tests/data/longform/expected holds what the bundled model reaches; one more is allowed of each.
# For a new model: REWRITE=1 tests/cli/test_longform.sh writes that file anew. Run from the repository's root.
. tests/cli/lib.sh
sound=tests/data/longform/speech.opus truth=tests/data/longform/speech.truth.json expected=tests/data/longform/expected
plan=(--window 6 --overlap 1)

# judge TSV CUTS: 'name count' of each figure: Levenshtein with backtrace; the nearer in time wins between equals.
judge() {
    awk -F'\t' -v cuts="$(tr '\n' ' ' <"$2")" '
        function abs(x) { return x < 0 ? -x : x }
        function near(j,  k) { for (k = 1; k <= n_cuts; k++) if (begin[j] - cut[k] <= 1 && cut[k] - end[j] <= 1) return 1; return 0 }
        function wrong(j) { errors++; if (near(j)) seam_errors++ }
        BEGIN { n_cuts = split(cuts, cut, " ") }
        FNR == NR { if (match($0, /^\["[a-z]+", [0-9]+, [0-9]+\]/)) { split(substr($0, 2), f, /[\[\]", ]+/)
                        word[++m] = f[2]; begin[m] = f[3] / 16000; end[m] = f[4] / 16000 } next }
        FNR > 1 { k = split($3, w, " "); first[++n_segments] = n + 1; from[n_segments] = $1 / 1000; to[n_segments] = $2 / 1000
                  for (i = 1; i <= k; i++) { said[++n] = w[i]; at[n] = ($1 + ($2 - $1) * (i - 0.5) / k) / 1000 }
                  last[n_segments] = n }
        END {
            for (i = 0; i <= n; i++) for (j = 0; j <= m; j++) {
                if (i == 0 || j == 0) { d[i, j] = i + j; continue }
                far = 0.0001 * abs(at[i] - (begin[j] + end[j]) / 2)
                best = d[i-1, j-1] + (said[i] != word[j]) + far; way[i, j] = 0
                if (d[i-1, j] + 1 < best) { best = d[i-1, j] + 1; way[i, j] = 1 }
                if (d[i, j-1] + 1 < best) { best = d[i, j-1] + 1; way[i, j] = 2 }
                d[i, j] = best }
            i = n; j = m
            while (i > 0 || j > 0) {
                if (j > 0 && (i == 0 || way[i, j] == 2)) { wrong(j); j--; continue }
                if (i > 0 && (j == 0 || way[i, j] == 1)) { wrong(j < m && !near(j) ? j + 1 : j); i--; continue }
                if (said[i] == word[j]) right[i] = j; else wrong(j)
                i--; j-- }
            for (s = 1; s <= n_segments; s++) {        # further than 0.1 s outside of the pause beside the word
                j = right[first[s]]; if (j) { bounds++; if (from[s] > begin[j] + 0.1 || from[s] < end[j-1] - 0.1) off++ }
                j = right[last[s]]; if (j) { bounds++; if (to[s] < end[j] - 0.1 || (j < m && to[s] > begin[j+1] + 0.1)) off++ } }
            printf "words %d\nsaid %d\nerrors %d\nseam_errors %d\nbounds %d\nbounds_off %d\n", m, n, errors, seam_errors, bounds, off
        }' "$truth" "$1"
}
of() { awk -v k="$1" '$1 == k { print $2 }' "$2"; }

check "the sound is transcribed" "$bin" transcribe -q "${plan[@]}" -F tsv,json -o "$dir/out/" "$sound"
"$bin" inspect media --json "${plan[@]}" "$sound" >"$dir/plan"
awk '/"windows"/ { on = 1 } on && /"end":/ { gsub(/[^0-9.]/, ""); print }' "$dir/plan" | head -n -1 >"$dir/cuts"
hard=$(grep -c '"clean_end": false' "$dir/plan"); n_windows=$(( $(wc -l <"$dir/cuts") + 1 ))
check "the plan has clean and hard cuts ($hard of $(( n_windows - 1 )) hard)" test "$hard" -ge 3 -a "$hard" -lt $(( n_windows - 1 ))
judge "$dir/out/speech.tsv" "$dir/cuts" >"$dir/figures"
if [[ -n ${REWRITE:-} ]]; then
    { echo "# of the bundled model; see tests/cli/test_longform.sh"; cat "$dir/figures"; } >"$expected"
    echo "# $expected rewritten: $(tr '\n' ' ' <"$dir/figures")"
fi
is "every word of the truth is compared" "$(of words "$dir/figures")" "$(grep -c '^\["' "$truth")"
for what in errors seam_errors bounds_off; do
    got=$(of $what "$dir/figures") most=$(( $(of $what "$expected") + 1 ))
    if [[ -n $got ]] && (( got <= most )); then ok "$what: $got, at most $most"; else not_ok "$what: $got, at most $most" "$(cat "$dir/out/speech.tsv")"; fi
done
check "bounds are compared: $(of bounds "$dir/figures")" test "$(of bounds "$dir/figures")" -ge "$n_windows"

# Killed in the middle; a machine that was quicker than the kill is asked again.
windows_of() { local n; for ((n = 0; n < 3000; n++)); do
    [[ -e $1 && $(grep -c '"window"' "$1") -ge $2 ]] && return 0
    kill -0 "$3" 2>/dev/null || return 1
    sleep 0.01; done; return 1; }
killed=0
for ((try = 0; try < 5 && !killed; try++)); do
    rm -rf "$dir/cut"; mkdir "$dir/cut"
    "$bin" transcribe -q -j 1 "${plan[@]}" -F tsv,json -o "$dir/cut/" "$sound" >/dev/null 2>&1 &
    pid=$!
    windows_of "$dir/cut/speech.odj" 4 $pid; kill -KILL $pid 2>/dev/null; { wait $pid; } 2>/dev/null
    [[ $? == 137 && ! -e $dir/cut/speech.tsv ]] && killed=1
done
is "killed in the middle" $killed 1
exits "and resumed" 0 '[1-9][0-9]* from the journal' "$bin" transcribe --resume "${plan[@]}" -F tsv,json -o "$dir/cut/" "$sound"
check "the same segments as in one go" cmp "$dir/cut/speech.tsv" "$dir/out/speech.tsv"
check "the same JSON" cmp "$dir/cut/speech.json" "$dir/out/speech.json"
exit $bad
