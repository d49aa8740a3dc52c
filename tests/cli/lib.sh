# tests/cli/lib.sh - sourced by the tests of the command line, from the repository's root; OMNIDROP names the program.
# Sets bin, demo, dir (a temporary folder, removed at the end), bad (the exit status) and json (the program json_get).
set -u
bin=${OMNIDROP:-build/omnidrop}
demo=tests/data/omni-tiny-demo
random=tests/goldens/odd/checkpoint        # a model of random weights: talks without end
json=${OMNIDROP_BUILD:-$(dirname "$bin")}/tests/cli/json_get
dir=$(mktemp -d); trap '[[ $BASHPID != $$ ]] || rm -rf "$dir"' EXIT
unset "${!OMNIDROP_@}"
bad=0
ok() { echo "ok - $1"; }
not_ok() { echo "not ok - $1"; bad=1; [[ -n ${2:-} ]] && printf '%s\n' "$2" | sed 's/^/#   /' | head -20; return 0; }
# check WHAT COMMAND...: the command succeeds
check() { local what=$1; shift; if "$@" >"$dir/check" 2>&1; then ok "$what"; else not_ok "$what" "$(cat "$dir/check")"; fi; }
# is WHAT GOT WANT
is() { if [[ $2 == "$3" ]]; then ok "$1"; else not_ok "$1" "got:  $2"$'\n'"want: $3"; fi; }
# exits WHAT CODE PATTERN COMMAND...: exit status, and PATTERN (extended) stands on stderr; standard output in $dir/stdout,
# standard error in $dir/err. A crash is never what is wanted.
exits() {
    local what=$1 code=$2 pattern=$3 got; shift 3
    "$@" >"$dir/stdout" 2>"$dir/err" </dev/null; got=$?
    if [[ $got != "$code" ]]; then not_ok "$what" "exit status $got, expected $code: $(cat "$dir/err")"
    elif [[ -n $pattern ]] && ! grep -qE -- "$pattern" "$dir/err"; then not_ok "$what" "no \"$pattern\" in: $(cat "$dir/err")"
    else ok "$what"; fi
}
# refuses WHAT CODE PATTERN COMMAND...: exits, and nothing came on standard output
refuses() {
    exits "$@"
    [[ -s $dir/stdout ]] && not_ok "$1: nothing on standard output" "$(cat "$dir/stdout")"
    return 0
}
# wait_for COMMAND...: until it succeeds, 30 s at most
wait_for() { local n; for ((n = 0; n < 600; n++)); do "$@" && return 0; sleep 0.05; done; return 1; }
