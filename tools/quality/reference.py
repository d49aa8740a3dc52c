"""reference.py - what transformers itself says: greedy answers of Qwen2_5OmniThinkerForConditionalGeneration to questions about files.

    python reference.py --clips build/quality/clips --out build/quality/reference.json [--clips-max 200]
    python reference.py --small        tests/quality/expected.json: the texts in f32 for every question of the committed clips
    python reference.py --demo         tests/data/omni-tiny-demo/answers.jsonl anew

The first is asked in f32 and bf16, one or two questions a clip, all groups; with every text stand its pieces, token by token, and
the two best logits of every step, so that run.py --reference can say how near a tie was where the engine differs.
Files are read as tools/omni_tiny/ask.py reads them. Needs tools/omni_tiny/requirements.txt and ffmpeg; the engine has no part in it.
"""
import argparse
import json
import os
import sys
import time

import torch

import engine as Q

sys.path.insert(0, os.path.join(Q.ROOT, "tools/omni_tiny"))
import ask
import evaluate as E
import model as M


class Reference:
    def __init__(self, folder, dtype):
        self.net, self.tok = E.load(folder, getattr(torch, dtype)), M.tokenizer(os.path.join(folder, "tokenizer.json"))
        self.read = None, None

    def clip(self, path):
        """The last file is kept: questions about one come together."""
        if self.read[0] != path or path is None:
            self.read = path, ask.read(path)
        return self.read[1]

    @torch.no_grad()
    def __call__(self, path, question):
        """{"text", "pieces": text of every token, the last one's (the end) empty, "top2": its two best logits}"""
        x, _ = E.inputs(self.tok, [self.clip(path)], [question])
        end = [M.ID["<|im_end|>"], M.ID["<|endoftext|>"]]
        y = self.net.generate(**E.cast(x, self.net.dtype), max_new_tokens=Q.MAX_TOKENS, do_sample=False, eos_token_id=end,
                              pad_token_id=M.ID["<|endoftext|>"], output_logits=True, return_dict_in_generate=True)
        ids = y.sequences[0, x["input_ids"].shape[1]:].tolist()
        top = [row[0].float().topk(2).values.tolist() for row in y.logits]
        return {"text": self.tok.decode([t for t in ids if t < M.FIRST_ADDED]),
                "pieces": ["" if t >= M.FIRST_ADDED else self.tok.decode([t]) for t in ids],
                "top2": [[round(a, 5), round(b, 5)] for a, b in top]}


PAIRS = (("screen", "cross"), ("transcribe", "screen"), ("cross", "speech"))      # of one film after another


def chosen(rows, clips_max):
    """Two questions of a film, one of a clip of speech; over the films all groups come. Half of the clips are films where there are so many."""
    by_clip = {}
    for r in rows:
        by_clip.setdefault(r["clip"], []).append(r)
    films = [c for c in by_clip if by_clip[c][0]["media"] == "video"]
    speech = [c for c in by_clip if by_clip[c][0]["media"] == "audio"]
    films = films[:max(clips_max // 2, clips_max - len(speech))]
    out = []
    for i, clip in enumerate(films):
        mine = [next((r for r in by_clip[clip] if r["group"] == g), None) for g in PAIRS[i % len(PAIRS)]]
        out += [r for r in mine if r] or by_clip[clip][:1]
    for clip in speech[:clips_max - len(films)]:
        out += by_clip[clip][:1]
    return out


def study(a):
    q = Q.Questions(a.clips)
    rows = chosen(q.rows, a.clips_max)
    answers = {r["id"]: {} for r in rows}
    for dtype in ("float32", "bfloat16"):
        say, start = Reference(a.model, dtype), time.time()
        for r in rows:
            answers[r["id"]][dtype] = say(os.path.join(q.folder, r["file"]), r["question"])
        right = sum(answers[r["id"]][dtype]["text"] == r["answer"] for r in rows)
        print(f"{dtype}: {right} of {len(rows)} answers right, about {len({r['clip'] for r in rows})} clips, in {time.time() - start:.0f} s", flush=True)
    with open(a.out, "w") as f:
        json.dump({"model": Q.model_digest(a.model), "clips": q.digest(), "answers": answers}, f)


def small(a):
    folder = os.path.join(Q.ROOT, "tests/quality")
    q, say = Q.Questions(os.path.join(folder, "clips")), Reference(a.model, "float32")
    texts = {r["id"]: say(os.path.join(q.folder, r["file"]), r["question"])["text"] for r in q.rows}
    with open(os.path.join(folder, "expected.json"), "w") as f:
        json.dump({"made_by": "tools/quality/reference.py --small", "model": Q.model_digest(a.model), "texts": texts}, f, indent=0)
        f.write("\n")
    print(f"{sum(texts[r['id']] == r['answer'] for r in q.rows)} of {len(q.rows)} answers right")


def demo(a):
    folder, right = os.path.join(Q.ROOT, "tests/data/omni-tiny-demo"), 0
    say = Reference(a.model, "float32")
    with open(os.path.join(folder, "questions.jsonl")) as f:
        rows = [json.loads(line) for line in f]
    for r in rows:
        media = next((os.path.join(folder, r[k]) for k in ("video", "audio", "image") if k in r), None)
        r["model_says"] = say(media, r["question"])["text"]
        right += r["model_says"] == r["answer"]
    with open(os.path.join(folder, "answers.jsonl"), "w") as f:
        f.writelines(json.dumps(r) + "\n" for r in rows)
    print(f"{right} of {len(rows)} answers right")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default=os.path.join(Q.ROOT, "models/omni-tiny"))
    p.add_argument("--clips", default=os.path.join(Q.ROOT, "build/quality/clips"))
    p.add_argument("--out", default=os.path.join(Q.ROOT, "build/quality/reference.json"))
    p.add_argument("--clips-max", type=int, default=200)
    p.add_argument("--small", action="store_true")
    p.add_argument("--demo", action="store_true")
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    if a.small or a.demo:
        if a.small:
            small(a)
        if a.demo:
            demo(a)
        return
    study(a)


if __name__ == "__main__":
    main()
