"""train_towers.py - stage 1: teach the two towers to name what is under every token.

A linear head (thrown away later) reads the word spoken in each 40 ms audio token, and the colour
and shape whose centre lies in each 28 x 28 pixel vision token. This gives the decoder features
that already mean something.

    python train_towers.py --work DIR [--steps 700]

A run that was stopped goes on from its last checkpoint, DIR/towers.run, when it is started again.
"""
import argparse, os, time

import numpy as np
import torch
import torch.nn.functional as F

import model as M
import world
from optim import Optimizer

COLOUR_ID = {c: i + 1 for i, c in enumerate(world.COLOURS)}
SHAPE_ID = {s: i + 1 for i, s in enumerate(world.SHAPES)}


def audio_labels(clip, n_tokens):
    """Word under the middle of every audio token, 0 for silence."""
    y = np.zeros(n_tokens, np.int64)
    for w, a, b in clip.words:
        y[max(0, (a + 320) // 640):(b + 320) // 640] = world.WORD_ID[w]
    return y


def vision_labels(clip):
    """[slices, tokens, 2]: colour and shape whose centre lies in the token, 0 for none."""
    h, w = clip.frames.shape[1:3]
    y = np.zeros((len(clip.spots), h // 28, w // 28, 2), np.int64)
    for k, things in enumerate(clip.spots):
        for c, s, cx, cy in things:
            y[k, min(int(cy // 28), h // 28 - 1), min(int(cx // 28), w // 28 - 1)] = COLOUR_ID[c], SHAPE_ID[s]
    return y.reshape(len(clip.spots), -1, 2)


def even(frames):
    """An image becomes two equal frames."""
    return np.concatenate([frames, frames]) if len(frames) == 1 else frames


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--work", required=True)
    a.add_argument("--steps", type=int, default=700)
    a = a.parse_args()
    torch.set_num_threads(2)
    bank = world.SpeechBank(os.path.join(a.work, "bank"), "train")
    test = world.SpeechBank(os.path.join(a.work, "bank"), "test")
    params = {n: x for n, x in M.init_params().items() if n.startswith(("audio", "visual"))}
    H = M.TEXT["hidden_size"]
    params["head.word"], params["head.look"] = torch.randn(49, H) * 0.02, torch.randn(15, H) * 0.02
    for x in params.values():
        x.requires_grad_(True)
    opt = Optimizer(params)
    path = lambda n: os.path.join(a.work, n)
    step, spent = 0, 0.0
    if os.path.exists(path("towers.run")):
        z = torch.load(path("towers.run"))
        for n, x in params.items():
            x.data.copy_(z["params"][n])
        opt.load(z["opt"])
        step, spent = z["step"], z["spent"]
    start = time.time() - spent

    def save(done):
        """The checkpoint to go on from, or at the end the towers alone."""
        if done:
            torch.save({k: x.detach() for k, x in params.items()}, path("towers.pt"))
        else:
            torch.save(dict(params=params, opt=opt.state(), step=step, spent=time.time() - start), path("towers.run.new"))
            os.replace(path("towers.run.new"), path("towers.run"))

    def run(bank, rng, n):
        p = {k: x.bfloat16() for k, x in params.items()}
        clips = [world.make_clip(rng, bank, "speech", 6) for _ in range(n)]
        mel, L = M.log_mel([c.wave for c in clips])
        y = torch.from_numpy(np.concatenate([audio_labels(c, M.n_audio_tokens(l)) for c, l in zip(clips, L)]))
        z = F.linear(torch.cat(M.audio_tower(p, mel, L, torch.bfloat16)), p["head.word"]).float()
        clips = [world.make_clip(rng, bank, "video", 4) for _ in range(n)]
        one = world.make_clip(rng, bank, "image", 1)
        h, w = one.frames.shape[1:3]
        images = [one]
        while len(images) < 6:                                   # same size, other content
            c = world.make_clip(rng, bank, "image", 1)
            if c.frames.shape == one.frames.shape or len(images) == 0:
                images.append(c)
            elif rng.random() < 0.02:
                break
        looks, labels = [], []
        for group in (clips, images):
            f = torch.from_numpy(np.stack([even(c.frames) for c in group]))
            x = M.patches(f)
            t = M.vision_tower(p, x, f.shape[2] // 14, f.shape[3] // 14, torch.bfloat16)
            looks.append(F.linear(t, p["head.look"]).float().flatten(0, 1))
            labels.append(torch.from_numpy(np.concatenate([vision_labels(c) for c in group])).flatten(0, 1))
        return z, y, torch.cat(looks), torch.cat(labels)

    def score(z, y, look, lab):
        on = lab[:, 0] > 0
        return ((z.argmax(1) == y).float().mean().item(), (z.argmax(1) == y)[y > 0].float().mean().item(),
                (look[:, :9].argmax(1) == lab[:, 0])[on].float().mean().item(),
                (look[:, 9:].argmax(1) == lab[:, 1])[on].float().mean().item(),
                ((look[:, :9].argmax(1) > 0) == on).float().mean().item())

    while step < a.steps:
        frac = step / a.steps
        z, y, look, lab = run(bank, np.random.default_rng([11, step]), 24)
        loss_a = F.cross_entropy(z, y)
        loss_v = F.cross_entropy(look[:, :9], lab[:, 0]) + F.cross_entropy(look[:, 9:], lab[:, 1])
        (loss_a + loss_v).backward()
        opt.step(min(1, (step + 1) / 50) * min(1, 1.6 * (1 - frac) + 0.02))
        if step % 50 == 0 or step < 3:
            with torch.no_grad():
                s = score(*run(test, np.random.default_rng(5), 12))
            print(f"{(time.time() - start) / 60:5.2f} min step {step} audio {loss_a:.3f} vision {loss_v:.3f} | test: token "
                  "%.3f word-token %.3f colour %.3f shape %.3f place %.3f" % s, flush=True)
        step += 1
        if step % 100 == 0:
            save(False)
    with torch.no_grad():
        print("end", score(*run(test, np.random.default_rng(6), 48)))
    save(True)


if __name__ == "__main__":
    main()
