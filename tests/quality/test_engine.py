"""Goal: the engine's answers about the committed clips (films with sound, H.264 and AAC, and speech) are transformers' own,
word for word in f32, and as good as they were measured to be, with and without pruning. Method: tools/quality/run.py on
tests/quality/clips; OMNIDROP names the program."""
import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
program = os.path.abspath(os.environ.get("OMNIDROP", os.path.join(ROOT, "build/omnidrop")))
run = [sys.executable, os.path.join(ROOT, "tools/quality/run.py"), "--engine", program]
sanitized = "/san" in os.environ.get("OMNIDROP_BUILD", program)

status = subprocess.run([*run, "--expect", HERE, *(["--clips-max", "6"] if sanitized else [])]).returncode
if not sanitized:                  # a thousand requests, for figures that a sanitizer does not change
    status |= subprocess.run([*run, "--check", HERE]).returncode
sys.exit(status)
