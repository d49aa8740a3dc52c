#!/bin/sh
# Make build/venv, the Python of the server's tests (tests/serve/requirements.txt, from PyPI). Nothing is done, and no
# network is used, where it stands already for these very requirements. The engine itself needs no Python.
set -eu

cd "$(dirname "$0")/.."
venv=build/venv
wanted=tests/serve/requirements.txt
stamp=$venv/requirements.txt

if cmp -s "$wanted" "$stamp" && "$venv/bin/python" -c 'import openai, jsonschema' 2>/dev/null; then exit 0; fi

# The distribution's own Python first: python3-venv of tools/install-deps.sh belongs to it.
for python in /usr/bin/python3 python3; do
    command -v "$python" >/dev/null 2>&1 && "$python" -c 'import venv, ensurepip' 2>/dev/null && break
    python=""
done
if [ -z "$python" ]; then
    echo "omnidrop: no python3 with venv: install the Debian package python3-venv" >&2
    exit 1
fi
echo "omnidrop: making $venv from PyPI"
rm -rf "$venv"
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps -r "$wanted"
"$venv/bin/python" -c 'import openai, jsonschema'
cp "$wanted" "$stamp"
