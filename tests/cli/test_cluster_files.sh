#!/bin/bash
# The cluster files of configs/: scripts that bash can read, options that omnidrop has, numbers that fit one another, and YAML
# whose indentation and fields are what the MPI operator reads (a small reader of its own: block mappings and lists).
set -u
omnidrop=${OMNIDROP:-build/omnidrop}
say() { if (($1)); then echo "not ok - $2"; else echo "ok - $2"; fi; }

bash -n configs/omnidrop.slurm; say $? "configs/omnidrop.slurm is a script"
options=$(sed -n 's/^#SBATCH --\([a-z-]*\)=.*/\1/p; s/^#SBATCH --\([a-z-]*\)$/\1/p' configs/omnidrop.slurm | sort -u | tr '\n' ' ')
[[ $options == "cpus-per-task gpus-per-task job-name no-kill nodes ntasks-per-node signal time " ]]
say $? "its #SBATCH lines are options of sbatch ($options)"
bad=$(grep -vE '^(#.*|[A-Za-z0-9.-]+( slots=[0-9]+)?( max_slots=[0-9]+)?)?$' configs/hostfile)
[[ -z $bad ]]; say $? "configs/hostfile: a host and its slots a line"

# known FILE: every --option of an omnidrop command in it is one of serve's.
known() {
    local help o missing=""
    help=$("$omnidrop" serve --help)
    for o in "$@"; do grep -qE -- "(^|[ ,])$o([ ,=]|$)" <<<"$help" || missing+="$o "; done
    [[ -z $missing ]]; say $? "options of serve: $* ${missing:+(missing: $missing)}"
}
known $(sed -n '/omnidrop serve/,$p' configs/omnidrop.slurm | grep -oE -- '--[a-z-]+')
known $(sed -n '/^# *mpirun/,/^# Ranks/p' configs/hostfile | sed -n '/omnidrop serve/p' | grep -oE -- '--[a-z-]+')
known $(sed -n '/- serve/,/Worker:/p' configs/omnidrop-mpijob.yaml | grep -oE -- '--[a-z-]+')

python=build/venv/bin/python; [[ -x $python ]] || python=python3
"$python" - configs/omnidrop-mpijob.yaml <<'PY' || python3 -c 'print("not ok - the YAML reader ended badly")'
import sys

def documents(text):
    """Block YAML of mappings, lists and scalars, two spaces a level; anything else is an error."""
    for part in text.split("\n---\n"):
        lines = [(len(l) - len(l.lstrip()), l.strip(), i) for i, l in enumerate(part.split("\n"), 1)
                 if l.strip() and not l.lstrip().startswith("#")]
        value, at = block(lines, 0, 0)
        assert at == len(lines), f"line {lines[at][2]}: indentation"
        yield value

def scalar(s):
    if s[:1] == '"':
        assert s[-1] == '"' and len(s) > 1, s
        return s[1:-1]
    assert s[0] not in "&*!|>%@`{[", f"{s}: not read here"
    return int(s) if s.isdigit() else {"true": True, "false": False}.get(s, s)

def block(lines, at, indent):
    out = [] if lines[at][1].startswith("- ") else {}
    while at < len(lines) and lines[at][0] == indent:
        text, n = lines[at][1], lines[at][2]
        assert text.startswith("- ") == isinstance(out, list), f"line {n}: list and mapping mixed"
        if isinstance(out, list):
            rest = text[2:].strip()
            key = rest.split(":")[0]
            if rest.endswith(":") or (": " in rest and " " not in key and rest[:1] != '"'):
                lines[at] = (indent + 2, rest, n)
                value, at = block(lines, at, indent + 2)
            else:
                value, at = scalar(rest), at + 1
            out.append(value)
            continue
        key, colon, rest = text.partition(":")
        assert colon and key not in out and "\t" not in text, f"line {n}: {text}"
        if rest.strip():
            out[key], at = scalar(rest.strip()), at + 1
        else:
            assert at + 1 < len(lines) and lines[at + 1][0] == indent + 2, f"line {n}: nothing below {key}"
            out[key], at = block(lines, at + 1, indent + 2)
    return out, at

def check(what, holds):
    print(("ok - " if holds else "not ok - ") + what)

job, service = documents(open(sys.argv[1]).read().rstrip("\n"))
spec = job["spec"]["mpiReplicaSpecs"]
worker, launcher = spec["Worker"], spec["Launcher"]
command = launcher["template"]["spec"]["containers"][0]["command"]
value = lambda o: command[command.index(o) + 1]
check("the MPIJob is one of the operator's v2beta1", (job["apiVersion"], job["kind"]) == ("kubeflow.org/v2beta1", "MPIJob"))
check("ranks are slots times workers, and tp times dp",
      int(value("-np")) == job["spec"]["slotsPerWorker"] * worker["replicas"] == int(value("--tp")) * int(value("--dp")))
check("a worker has a device for each slot",
      worker["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == job["spec"]["slotsPerWorker"])
check("every word of the command is text", all(isinstance(w, str) for w in command))
mounts = {m["name"] for m in worker["template"]["spec"]["containers"][0]["volumeMounts"]}
check("every mount has its volume", mounts == {v["name"] for v in worker["template"]["spec"]["volumes"]})
check("the service leads to the port", service["spec"]["ports"][0]["targetPort"] == int(value("--port")))
try:
    list(documents("a:\n  b: 1\n   c: 2\n"))
    check("the reader refuses a wrong indentation", False)
except AssertionError:
    check("the reader refuses a wrong indentation", True)
PY
