#!/bin/sh
# tools/omni_tiny/make.sh WORK [TO]: the bundled model from nothing, about two hours on two idle cores: speech by espeak-ng, the
# towers, the whole model, the folder TO (default models/omni-tiny), its figures. Started again, it goes on where it was stopped.
# Needs espeak-ng and ffmpeg, and a Python with requirements.txt ($PYTHON, default python3).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
work=$1
to=${2:-$here/../../models/omni-tiny}
python=${PYTHON:-python3}

mkdir -p "$work/bank" "$to"
# The tokenizer is part of the model's folder: trained once from world.corpus(), kept so that ids stay what they are.
[ -f "$work/tokenizer.json" ] || cp "$here/../../models/omni-tiny/tokenizer.json" "$work/"
cd "$here"
"$python" -c 'import sys, world; [world.SpeechBank(sys.argv[1], s) for s in ("test", "voices", "train")]' "$work/bank"
[ -f "$work/towers.pt" ] || "$python" train_towers.py --work "$work" 2>&1 | tee -a "$work/towers.log"
[ -f "$work/model.pt" ] || "$python" -m torch.distributed.run --nproc-per-node 2 train.py --work "$work" 2>&1 | tee -a "$work/train.log"
"$python" export.py --work "$work" --to "$to"
"$python" evaluate.py --model "$to" --work "$work" --out "$work/figures.json" 2>&1 | tee "$work/evaluate.log"
