#!/bin/sh
# tools/quality/quality.sh PROGRAM COMMAND: what `make quality` and its like do. docs/quality.md.
#   study [N]     clips with N questions of each group (300), every policy at every budget; docs/measurements/quality-DATE.md,
#                 for another N than 300 the table goes beside its clips into build/quality-N; $QUALITY_FLAGS go to run.py
#   refresh       after a new model: the committed figures of tests/quality and the demo's answers ($PYTHON: with torch)
#   reference     200 clips of the study through transformers ($PYTHON), then the engine beside them
# Makes build/venv-quality from PyPI and installs espeak-ng and ffmpeg from the distribution, where they are missing.
set -eu

cd "$(dirname "$0")/../.."
program=$1
command=$2
n=${3:-300}
folder=build/quality
[ "$n" = 300 ] || folder=build/quality-$n
python=${PYTHON:-python3}

# The Python of the study.
prepare() {
    venv=build/venv-quality
    wanted=tools/quality/requirements.txt
    cmp -s "$wanted" "$venv/requirements.txt" && return
    echo "omnidrop: making $venv from PyPI"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -r "$wanted"
    cp "$wanted" "$venv/requirements.txt"
}

# Voices and codecs, for clips that are not there yet.
voices() {
    command -v espeak-ng >/dev/null && command -v ffmpeg >/dev/null && return
    if [ "$(id -u)" = 0 ]; then sudo=""; else sudo="sudo -n"; fi
    echo "omnidrop: installing from the distribution: espeak-ng ffmpeg"
    export DEBIAN_FRONTEND=noninteractive
    if $sudo apt-get install -y -qq --no-install-recommends espeak-ng ffmpeg >/dev/null 2>&1; then return; fi
    if $sudo apt-get update -qq && $sudo apt-get install -y -qq --no-install-recommends espeak-ng ffmpeg >/dev/null; then return; fi
    echo "omnidrop: the clips need espeak-ng and ffmpeg: sudo apt-get install espeak-ng ffmpeg" >&2
    exit 1
}

torch() {
    "$python" -c 'import torch, transformers' 2>/dev/null && return
    echo "omnidrop: $python has no torch and transformers: make a venv of tools/omni_tiny/requirements.txt and name it: make $1 PYTHON=venv/bin/python" >&2
    exit 1
}

clips() {
    prepare
    voices
    build/venv-quality/bin/python tools/quality/clips.py --out "$folder/clips" --bank build/quality/bank --n "$n"
}

case $command in
study)
    clips
    set -- --engine "$program" --clips "$folder/clips" --out "$folder"
    [ "$n" = 300 ] || set -- "$@" --report "$folder/quality"
    # shellcheck disable=SC2086
    build/venv-quality/bin/python tools/quality/run.py "$@" ${QUALITY_FLAGS:-}
    ;;
refresh)
    torch quality-refresh
    "$python" tools/quality/reference.py --small --demo
    "$python" tools/quality/run.py --engine "$program" --write-known tests/quality
    ;;
reference)
    torch quality-reference
    clips
    "$python" tools/quality/reference.py --clips "$folder/clips" --out "$folder/reference.json"
    "$python" tools/quality/run.py --engine "$program" --clips "$folder/clips" --out "$folder" --reference "$folder/reference.json"
    ;;
*)
    echo "quality.sh PROGRAM study [N] | refresh | reference" >&2
    exit 2
    ;;
esac
