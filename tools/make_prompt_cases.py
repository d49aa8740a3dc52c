#!/usr/bin/env python3
"""Random prompts with the ids and positions that transformers gives them: tests/data/prompt/cases.txt.

    tools/make_prompt_cases.py [FILE]

Token ids: Qwen2_5OmniProcessor's own expansion of videos with sound. Positions: get_rope_index of the
thinker. Chunk ids and query rows: docs/omnidrop.md 1 and 4, written here apart from the engine.
Made with transformers 5.23.0, torch 2.15.0, numpy 2.4.6.

One case is the lines

    case AUDIO_IN_VIDEO N_QUERY_MAX
    media KIND N_AUDIO HAS_AUDIO T H W SECOND_PER_GRID       for each; the last a hexadecimal double
    token ID USER ...                                        runs COUNT:ID:USER before expansion
    id / kind / chunk                                        runs COUNT:VALUE after it
    t / h / w                                                runs COUNT:DIFFERENCE, from 0
    query                                                    runs COUNT:DIFFERENCE, from 0
    next POSITION
"""
import random
import sys
from types import SimpleNamespace

import numpy as np
import torch
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as modeling
from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor

AUDIO, IMAGE, VIDEO, A_BOS, A_EOS, V_BOS, V_EOS = 900, 901, 902, 903, 904, 905, 906
TEXT, K_AUDIO, K_VIDEO, K_IMAGE = 0, 1, 2, 3
PER_SECOND, SECONDS = 25, 2.0
PER = int(PER_SECOND * SECONDS)
LETTER = {"a": AUDIO, "v": VIDEO, "[": A_BOS, "]": A_EOS}
FPS = [2.0, 2.0, 2.0, 1.0, 4.0, 0.5, 0.4, 0.25, 1.25, 1.1, 0.7, 3.0, 29.97 / 7, 23.976 / 5, 30.0, 1.9]
FPS_TORN = [5 / 13, 9 / 7, 10 / 13, 17 / 3]     # processor and position code cut such videos differently

Reference = modeling.Qwen2_5OmniPreTrainedModelForConditionalGeneration


def reference_positions(ids, images, videos, spg, audio_lens, audio_in_video):
    config = SimpleNamespace(image_token_id=IMAGE, video_token_id=VIDEO, audio_token_id=AUDIO,
                             vision_start_token_id=V_BOS, audio_start_token_id=A_BOS,
                             position_id_per_seconds=PER_SECOND, seconds_per_chunk=SECONDS)
    model = SimpleNamespace(config=config, spatial_merge_size=2)
    for name in ("get_llm_pos_ids_for_vision", "get_chunked_index"):
        setattr(model, name, getattr(Reference, name).__get__(model))
    tensor = lambda x: torch.tensor(x) if x else None
    x = torch.tensor([ids])
    pos, _ = Reference.get_rope_index(
        model, x, tensor(images), tensor(videos), torch.ones_like(x), audio_in_video,
        tensor(audio_lens), torch.tensor(spg) if spg else None)
    return pos[:, 0].tolist()


def expand_video_with_sound(m):
    p = SimpleNamespace(audio_bos_token="[", audio_eos_token="]", audio_token="a", video_token="v",
                        video_processor=SimpleNamespace(merge_size=2))
    p.get_chunked_index = Qwen2_5OmniProcessor.get_chunked_index.__get__(p)
    text = Qwen2_5OmniProcessor.replace_video_with_audio_token(
        p, {"video_grid_thw": np.array([[m.t, m.h, m.w]]), "video_second_per_grid": [m.spg]}, 0,
        {"num_audio_tokens": [m.n_audio]}, 0, position_id_per_seconds=PER_SECOND, seconds_per_chunk=SECONDS)
    return [LETTER[c] for c in text]


def chunks_of(m, tokens):
    n = len(tokens)
    if m.kind == K_IMAGE:
        return [0] * n
    if m.kind == K_AUDIO:
        return [j // PER for j in range(n)]
    step = m.h // 2 * (m.w // 2)
    if not m.has_audio:
        return [int(PER_SECOND * (j // step) * m.spg / PER) for j in range(n)]
    p = SimpleNamespace()
    split = Qwen2_5OmniProcessor.get_chunked_index.__get__(p)
    out, where = [], {}
    for letter, values in ((VIDEO, [(j // step) * m.spg * PER_SECOND for j in range(n - m.n_audio)]),
                           (AUDIO, list(range(m.n_audio)))):
        where[letter] = [c for c, (a, b) in enumerate(split(values, PER)) for _ in range(b - a)]
    for t in tokens:
        out.append(where[t].pop(0))
    return out


def random_media(rng, audio_in_video):
    kind = rng.choice([K_AUDIO, K_IMAGE, K_VIDEO, K_VIDEO])
    m = SimpleNamespace(kind=kind, n_audio=0, has_audio=False, t=0, h=0, w=0, spg=0.0, frames=0)
    if kind != K_IMAGE and (kind == K_AUDIO or audio_in_video):
        m.frames = rng.choice([rng.randint(3, 40), rng.randint(3, 1200), 200 * rng.randint(1, 6)])
        m.n_audio = (m.frames + 1) // 4
    if kind != K_AUDIO:
        m.h, m.w = 2 * rng.randint(1, 4), 2 * rng.randint(1, 4)
        m.t = 1
    if kind == K_VIDEO:
        m.has_audio = audio_in_video
        m.spg = 2 / rng.choice(FPS)
        m.t = rng.choice([1, 2, 3, rng.randint(1, 9), rng.randint(1, 9)])
        if rng.random() < 0.15:
            m.t, m.h, m.w = rng.randint(10, 90), 2, 2
            m.spg = 2 / rng.choice(FPS + 2 * FPS_TORN)
    return m


def one_case(rng):
    audio_in_video = rng.random() < 0.6
    n_query_max = rng.choice([256, 256, 5])
    tokens, ids, kind, chunk, media, base = [], [], [], [], [], 0

    def text(n, user):
        for _ in range(n):
            t = (rng.randint(3, 9), user and rng.random() < 0.9)
            tokens.append(t)
            ids.append(t[0])
            kind.append(TEXT)
            chunk.append(-1)

    def fixed(t):
        tokens.append((t, False))
        ids.append(t)
        kind.append(TEXT)
        chunk.append(-1)

    text(rng.choice([1, 14]), False)
    for _ in range(rng.randint(0, 4)):
        m = random_media(rng, audio_in_video)
        media.append(m)
        text(rng.choice([0, 0, 1, 6]), rng.random() < 0.6)
        bos, eos, place = {K_AUDIO: (A_BOS, A_EOS, AUDIO), K_IMAGE: (V_BOS, V_EOS, IMAGE),
                           K_VIDEO: (V_BOS, V_EOS, VIDEO)}[m.kind]
        fixed(bos)
        tokens.append((place, False))
        n = m.t * m.h * m.w // 4 if m.kind != K_AUDIO else m.n_audio
        item = expand_video_with_sound(m) if m.has_audio else [place] * n
        inner = item[1:-1] if m.has_audio else item
        numbers = chunks_of(m, inner)
        ids.extend(item)
        kinds = [K_AUDIO if t == AUDIO else m.kind for t in inner]
        kind.extend([TEXT] + kinds + [TEXT] if m.has_audio else kinds)
        numbers_at = [base + c for c in numbers]
        chunk.extend([-1] + numbers_at + [-1] if m.has_audio else numbers_at)
        base = max(numbers_at) + 1
        fixed(eos)
    text(rng.choice([0, 3, 9, 300 if rng.random() < 0.1 else 2]), True)
    text(5, False)

    user = []
    i = 0
    for t, u in tokens:           # where each token went
        while ids[i] != t:
            i += 1
        if u:
            user.append(i)
        if t in (AUDIO, IMAGE, VIDEO):
            k = kind[i]
            while kind[i] != TEXT:
                i += 1
            if media and k == K_VIDEO and ids[i] == A_EOS and ids[i + 1] == V_EOS:
                i += 1
        else:
            i += 1
    av = [i for i, k in enumerate(kind) if k != TEXT]
    query = []
    if av:
        query = [i for i in user if i > av[0]] or list(range(av[-1] + 1, len(ids)))
    query = query[-n_query_max:]
    pos = reference_positions(ids, [[1, m.h, m.w] for m in media if m.kind == K_IMAGE],
                              [[m.t, m.h, m.w] for m in media if m.kind == K_VIDEO],
                              [m.spg for m in media if m.kind == K_VIDEO],
                              [m.frames for m in media if m.n_audio], audio_in_video)
    return SimpleNamespace(audio_in_video=audio_in_video, n_query_max=n_query_max, media=media, tokens=tokens,
                           ids=ids, kind=kind, chunk=chunk, pos=pos, query=query)


def runs(values):
    out = []
    for v in values:
        if out and out[-1][1] == v:
            out[-1][0] += 1
        else:
            out.append([1, v])
    return " ".join(f"{n}:{v}" for n, v in out)


def differences(values):
    return runs([b - a for a, b in zip([0] + list(values), values)])


def main():
    rng = random.Random(20261121)
    lines = []
    for _ in range(240):
        c = one_case(rng)
        lines.append(f"case {int(c.audio_in_video)} {c.n_query_max}")
        for m in c.media:
            grid = f"{m.t} {m.h} {m.w} {float(m.spg).hex()}"
            lines.append(f"media {m.kind} {m.n_audio} {int(m.has_audio)} {grid}")
        lines.append("token " + runs([f"{t}:{int(u)}" for t, u in c.tokens]))
        for name, v in (("id", c.ids), ("kind", c.kind), ("chunk", c.chunk)):
            lines.append(f"{name} {runs(v)}")
        for name, v in zip("thw", c.pos):
            lines.append(f"{name} {differences(v)}")
        lines.append(f"query {differences(c.query)}")
        lines.append(f"next {c.pos[0][-1] + 1}")
    with open(sys.argv[1] if len(sys.argv) > 1 else "tests/data/prompt/cases.txt", "w") as f:
        f.write("\n".join(lines) + "\n")


main()
