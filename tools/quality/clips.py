"""clips.py - clips of omni-tiny's world as files, from seeds that neither training nor the demo uses, and their questions.

    python clips.py --out build/quality/clips --bank build/quality/bank [--n 300]
    python clips.py --out tests/quality/clips --bank build/quality/bank --small

Films with sound (av*.mp4) with up to 12 questions each, and speech alone (speech*) for transcripts, until every group has
n questions: transcribe, screen, cross. What films ask about speech besides (first word, is it spoken) is the group speech;
it gets as many as come. questions.jsonl has a line for each: {"id", "clip", "file", "media", "kind", "group", "question", "answer"},
questions of one clip together. A folder that holds clips for the same arguments is left as it is.

Speech is the split "test" of world.SpeechBank: the voices of training at speeds and pitches that it never heard.
--small: the fixed set of tests/quality/clips (20 films of 6 s, 12 speech clips, sound in 64 kbit/s AAC, H.264 at crf 20).
Needs espeak-ng (where the bank is not there yet) and ffmpeg.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import soundfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../omni_tiny"))
import world

SEED = 20260514                    # training draws from [1.., step, ...], evaluation from 2024, the demo from 7
N_ROWS = 12
SMALL = {"films": 20, "film_s": 6, "speech": 12}


def group_of(kind):
    if kind == "transcribe":
        return kind
    return "screen" if kind in world.SCREEN else "cross" if kind in world.CROSS else "speech"


def clip_of(bank, kind, i, seconds):
    rng = np.random.default_rng([SEED, i, seconds, sum(map(ord, kind))])
    return world.make_clip(rng, bank, kind, seconds, N_ROWS)


def write_small(clip, stem):
    """As world.write_clip, in fewer bytes; speech in AAC too."""
    with tempfile.TemporaryDirectory() as tmp:
        soundfile.write(tmp + "/a.wav", clip.wave, world.RATE, subtype="PCM_16")
        sound = ["-c:a", "aac", "-b:a", "64k"]
        end = ".m4a" if clip.frames is None else ".mp4"
        command = ["ffmpeg", "-y", "-loglevel", "error", "-i", tmp + "/a.wav", *sound, "-bitexact", stem + end]
        if clip.frames is not None:
            command[4:4] = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{world.WIDTH}x{world.HEIGHT}", "-r", str(world.FPS), "-i", "-"]
            command[-1:-1] = ["-c:v", "libx264", "-crf", "20", "-preset", "veryslow", "-pix_fmt", "yuv420p"]
        subprocess.run(command, input=None if clip.frames is None else clip.frames.tobytes(), check=True)
    return {"audio" if clip.frames is None else "video": os.path.basename(stem) + end}


def small_set(bank):
    """(name, clip, rows) of the fixed set."""
    for i in range(SMALL["films"]):
        clip = clip_of(bank, "av", i, SMALL["film_s"])
        yield f"av{i:03d}", clip, clip.rows
    for i in range(SMALL["speech"]):
        clip = clip_of(bank, "speech", i, 5 + i % 3)
        yield f"speech{i:03d}", clip, clip.rows[:1]


def full_set(bank, n):
    """Films until screen and cross have n questions, then speech of 8, 9 and 10 s until there are n transcripts."""
    have = dict.fromkeys(("transcribe", "screen", "cross", "speech"), 0)
    i = 0
    while have["screen"] < n or have["cross"] < n:
        clip, rows = clip_of(bank, "av", i, 8), []
        for row in clip.rows:
            if have[group_of(row[0])] < n:
                rows.append(row)
                have[group_of(row[0])] += 1
        if rows:
            yield f"av{i:03d}", clip, rows
        i += 1
    for i in range(n - have["transcribe"]):
        clip = clip_of(bank, "speech", i, 8 + i % 3)
        yield f"speech{i:03d}", clip, clip.rows[:1]


def make(out, bank_folder, n, small):
    wanted = {"seed": SEED, "small": SMALL} if small else {"seed": SEED, "n": n}
    stamp = os.path.join(out, "made.json")
    if os.path.exists(stamp) and json.load(open(stamp)) == wanted:
        return
    os.makedirs(out, exist_ok=True)
    os.makedirs(bank_folder, exist_ok=True)
    bank, lines = world.SpeechBank(bank_folder, "test"), []
    for name, clip, rows in small_set(bank) if small else full_set(bank, n):
        media = (write_small if small else world.write_clip)(clip, os.path.join(out, name))
        what = "video" if "video" in media else "audio"
        for k, (kind, question, answer) in enumerate(rows):
            lines.append({"id": f"{name}.{k}", "clip": name, "file": media[what], "media": what, "kind": kind, "group": group_of(kind),
                          "question": question, "answer": answer})
    with open(os.path.join(out, "questions.jsonl"), "w") as f:
        f.writelines(json.dumps(x) + "\n" for x in lines)
    with open(stamp, "w") as f:
        json.dump(wanted, f)
    count = {g: sum(x["group"] == g for x in lines) for g in ("transcribe", "screen", "cross", "speech")}
    print(f"{out}: {len({x['clip'] for x in lines})} clips, questions: " + ", ".join(f"{g} {c}" for g, c in count.items()))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--out", required=True)
    p.add_argument("--bank", required=True, help="folder of the cached speech; made where it is not there")
    p.add_argument("--n", type=int, default=300, help="questions of each group at least")
    p.add_argument("--small", action="store_true", help="the fixed set of tests/quality/clips")
    a = p.parse_args()
    make(a.out, a.bank, a.n, a.small)


if __name__ == "__main__":
    main()
