"""reference.py - one golden request through Hugging Face transformers, layer by layer.

    Checkpoint(dir, dtype)          the thinker in `dtype`, its tokenizer and processors
    run(ckpt, folder, case)         dict of every tensor that golden-format.md names, and notes on near ties

The decoder is run in the textbook order: layer l for every row alive entering it, then its cut. The layers
are the model's own modules; attention is eager, so that its weights can be read. Without a policy the
untouched model (forward and generate) is run beside it and must agree.
"""
import base64
import glob
import io
import json
import math
import os

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import DynamicCache, Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as hf

from goldens import media, policies

TEXT, AUDIO, VIDEO, IMAGE = 0, 1, 2, 3
TRIPLE = {
    AUDIO: ("audio_bos", "AUDIO", "audio_eos"), VIDEO: ("vision_bos", "VIDEO", "vision_eos"),
    IMAGE: ("vision_bos", "IMAGE", "vision_eos")
}


class Checkpoint:
    def __init__(self, path, dtype=torch.float32):
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.path = path
        self.model, info = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(
            path, dtype=dtype, attn_implementation="eager", output_loading_info=True)
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if [k for k in info.get(what) or [] if not str(k).startswith(("talker", "token2wav", "compressor"))]:
                raise SystemExit(f"{path}: {what}: {info[what]}")
        self.model.eval()
        self.processor = Qwen2_5OmniProcessor.from_pretrained(path)
        with open(os.path.join(path, "tokenizer.json"), encoding="utf-8") as f:
            data = json.load(f)
        self.added = {t["content"]: t["id"] for t in data["added_tokens"]}
        self.n_ids = 1 + max(max(self.added.values()), max(data["model"]["vocab"].values()))
        self.plain = Tokenizer.from_str(json.dumps(dict(data, added_tokens=[])))
        self.config = self.model.config
        with open(os.path.join(path, "generation_config.json")) as f:
            stop = json.load(f)["eos_token_id"]
        self.stop = stop if isinstance(stop, list) else [stop]
        video = os.path.join(path, "video_preprocessor_config.json")
        self.video_limits = (100352, 602112)
        if os.path.exists(video):
            with open(video) as f:
                data = json.load(f)
            self.video_limits = (data["min_pixels"], data["max_pixels"])


    def selector(self):
        """OmniSIFT's, where the checkpoint has one: name -> tensor in double precision."""
        files = sorted(glob.glob(os.path.join(self.path, "*.safetensors")))
        named = {n: x for f in files for n, x in load_file(f).items() if "compressor." in n}
        return {n.split("compressor.")[1]: x.double() for n, x in named.items()}


# ---------------------------------------------------------------- the prompt


def kind_of(part):
    for word, kind in (("image", IMAGE), ("video", VIDEO), ("audio", AUDIO)):
        if part["type"] in (word, word + "_url"):
            return kind, part[part["type"]]["url"]
    if part["type"] == "input_audio":
        return AUDIO, io.BytesIO(base64.b64decode(part["input_audio"]["data"]))
    return (TEXT, part["text"]) if part["type"] == "text" else (None, None)


def segments(messages):
    """[text, kind of media or None if special or -1 if plain, own?] in order; and the media."""
    out, items = [], []
    say = lambda text, own=False: out.append((text, -1, own))
    mark = lambda text: out.append((text, None, False))
    users = [i for i, m in enumerate(messages) if m["role"] == "user"]
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": "You are a helpful assistant."}] + messages
        users = [i + 1 for i in users]
    for i, m in enumerate(messages):
        own = bool(users) and i == users[-1]
        mark("<|im_start|>")
        say(m["role"] + "\n")
        body = m["content"] if isinstance(m["content"], list) else [{"type": "text", "text": m["content"]}]
        for part in body:
            kind, value = kind_of(part)
            if kind == TEXT:
                say(value, own)
            else:
                a, b, c = TRIPLE[kind]
                mark(f"<|{a}|>")
                out.append((f"<|{b}|>", kind, False))
                mark(f"<|{c}|>")
                items.append(dict(kind=kind, url=value))
        mark("<|im_end|>")
        say("\n")
    mark("<|im_start|>")
    say("assistant\n")
    return out, items


def split(values, per):
    """The reference's splitter: at most one close for each token."""
    out, start, c = [], 0, 1
    for i, v in enumerate(values):
        if v >= c * per:
            out.append((start, i))
            start, c = i, c + 1
    return out + [(start, len(values))]


def build(ckpt, case, items, parts):
    """ids, kind, chunk, own flags; `items` know their token counts."""
    c = ckpt.config
    per, spg = c.position_id_per_seconds * c.seconds_per_chunk, 2 / case.get("fps", 2.0)
    ids, kinds, chunks, own = [], [], [], []
    add = lambda i, k=TEXT, ch=-1, o=False: (ids.append(i), kinds.append(k), chunks.append(ch), own.append(o))
    run, base, at = [], 0, 0

    def flush():
        if not run:
            return
        text = "".join(t for t, _ in run)
        mine = np.concatenate([np.full(len(t), o) for t, o in run]) if text else np.zeros(0, bool)
        e = ckpt.plain.encode(text, add_special_tokens=False)
        for i, (a, b) in zip(e.ids, e.offsets):
            add(i, o=bool(mine[a:max(b, a + 1)].any()))
        run.clear()

    for text, kind, mine in parts:
        if kind == -1:
            run.append((text, mine))
            continue
        flush()
        if kind is None:
            add(ckpt.added[text])
            continue
        item = items[at]
        at += 1
        token = {k: ckpt.added[f"<|{n}|>"] for k, n in ((AUDIO, "AUDIO"), (VIDEO, "VIDEO"), (IMAGE, "IMAGE"))}
        first = len(chunks)
        if kind == AUDIO:
            for j in range(item["n_audio"]):
                add(token[AUDIO], AUDIO, base + j // per)
        elif kind == IMAGE:
            for _ in range(item["n_vision"]):
                add(token[IMAGE], IMAGE, base)
        else:
            t = int(item["grid"][0])
            slice_of = np.repeat(np.arange(t), item["n_vision"] // t)
            if not case.get("use_audio_in_video"):
                for k in slice_of:
                    add(token[VIDEO], VIDEO, base + int(k * spg * c.position_id_per_seconds / per))
            else:
                v = split(slice_of * spg * c.position_id_per_seconds, per)
                a = split(range(item["n_audio"]), per)
                add(ckpt.added["<|audio_bos|>"])
                for k in range(max(len(v), len(a))):
                    for n, kd in ((v, VIDEO), (a, AUDIO)):
                        for _ in range(n[k][1] - n[k][0] if k < len(n) else 0):
                            add(token[kd], kd, base + k)
                add(ckpt.added["<|audio_eos|>"])
        base = max([base - 1] + chunks[first:]) + 1
    flush()
    return np.array(ids), np.array(kinds), np.array(chunks), np.array(own)


def query_rows(kinds, own):
    """Prompt indices of the rows whose attention ranks the media."""
    av = np.flatnonzero(kinds)
    q = np.flatnonzero(own & (np.arange(len(own)) > av[0]))
    if len(q) == 0:
        q = np.arange(av[-1] + 1, len(own))
    return q[-256:]


# ---------------------------------------------------------------- media to towers


def limits(ckpt, case, kind):
    low, high = (3136, 12845056) if kind == IMAGE else ckpt.video_limits
    return case.get("min_pixels", low), case.get("max_pixels", high)


def features(ckpt, folder, case, items):
    """mel and patches of every item, from its media."""
    for item in items:
        url = item["url"]
        path = os.path.join(folder, url[5:]) if isinstance(url, str) else url
        if item["kind"] == AUDIO or (item["kind"] == VIDEO and case.get("use_audio_in_video")):
            x = ckpt.processor.feature_extractor(media.read_sound(path), sampling_rate=media.RATE,
                                                 padding="max_length", return_attention_mask=True,
                                                 return_tensors="pt")
            item["mel"] = x["input_features"][0][:, x["attention_mask"][0].bool()]
        low, high = limits(ckpt, case, item["kind"])
        size = dict(shortest_edge=low, longest_edge=high)
        if item["kind"] == IMAGE:
            image = media.read_image(path)
            h, w = media.smart_resize(image.height, image.width, low, high)
            image = image.resize((w, h), resample=3)
            x = ckpt.processor.image_processor(images=[image], size=size, return_tensors="pt")
            item["patches"], item["grid"] = x["pixel_values"], x["image_grid_thw"][0]
        elif item["kind"] == VIDEO:
            frames, rate = media.read_frames(path)
            frames = frames[media.frame_indices(len(frames), rate, case.get("fps", 2.0))]
            frames = media.resize_frames(frames, low, high)
            x = ckpt.processor.video_processor(videos=[frames], size=size, do_sample_frames=False,
                                               return_tensors="pt", cap_pixels_per_frame=False)
            item["patches"], item["grid"] = x["pixel_values_videos"], x["video_grid_thw"][0]


def counts(items):
    for item in items:
        if "mel" in item:
            item["n_audio"] = (item["mel"].shape[1] + 1) // 4
        if "grid" in item:
            item["n_vision"] = int(item["grid"].prod()) // 4


def towers(ckpt, items):
    """audio_embeds and vision_embeds of every item, and the saliency of every audio token (omnidrop.md 2)."""
    m, a = ckpt.model.model, ckpt.config.audio_config
    last = m.audio_tower.layers[-1].self_attn
    full = ckpt.config.vision_config.fullatt_block_indexes or [ckpt.config.vision_config.depth - 1]
    block = {m.visual.blocks[i].attn: i for i in full}
    keep, seen, made, plain, permute = [], {}, {}, hf.eager_attention_forward, m.visual.permute_input_for_window_attn

    def spy(module, *args, **kw):
        out = plain(module, *args, **kw)
        if module is last:
            keep.append(out[1][0].double().mean((0, 1)))
        if module in block:
            seen.setdefault(block[module], []).append(out[1][0].double().mean((0, 1)))
        return out

    def permuted(x, index, **kw):
        made["window"] = index
        return permute(x, index, **kw)

    def watched(tower, *args, **kw):
        keep.clear()
        seen.clear()
        hooks = [
            module.register_forward_hook(lambda mod, a, out, name=name: made.update({name: out.double()}))
            for name, module in (("q", last.q_proj), ("k", last.k_proj), ("keys", m.visual.blocks[full[-1]].attn.k))
        ]
        hf.eager_attention_forward, m.visual.permute_input_for_window_attn = spy, permuted
        try:
            return tower(*args, **kw)
        finally:
            hf.eager_attention_forward, m.visual.permute_input_for_window_attn = plain, permute
            for hook in hooks:
                hook.remove()

    for item in items:
        if "mel" in item:
            n = torch.tensor([item["mel"].shape[1]])
            item["audio"] = watched(m.audio_tower, item["mel"].to(ckpt.model.dtype),
                                    feature_lens=n).last_hidden_state
            pooled = lambda s: s[:len(s) // 2 * 2].view(-1, 2).mean(1)
            s = pooled(torch.cat([x * (len(x) / a.n_window) for x in keep]))
            item["saliency"] = s.numpy()
            heads = lambda x: x.view(len(x), last.num_heads, -1).transpose(0, 1)
            p = (heads(made["q"]) @ heads(made["k"]).transpose(1, 2) * last.scaling).softmax(-1)
            item["global_saliency"] = pooled(p.mean((0, 1))).numpy()
            assert len(s) == len(item["audio"]) == item["n_audio"]
        if "patches" in item:
            item["vision"] = watched(m.visual, item["patches"].to(ckpt.model.dtype),
                                     grid_thw=item["grid"][None]).pooler_output
            assert len(item["vision"]) == item["n_vision"]
            order = torch.argsort(torch.as_tensor(made["window"]))
            item["blocks"] = np.stack([torch.cat(seen[i]).view(-1, 4).mean(1)[order].numpy() for i in sorted(seen)])
            item["vision_saliency"] = item["blocks"][-1]
            item["keys"] = made["keys"].view(item["n_vision"], 4, -1).mean(1)[order].numpy()


def positions(ckpt, case, ids, items):
    grids = lambda k: torch.stack([i["grid"]
                                   for i in items
                                   if i["kind"] == k]) if any(i["kind"] == k for i in items) else None
    n_video = sum(i["kind"] == VIDEO for i in items)
    lens = [i["mel"].shape[1] for i in items if "mel" in i]
    ids = torch.from_numpy(ids)[None]
    pos, _ = ckpt.model.get_rope_index(
        ids, grids(IMAGE), grids(VIDEO), torch.ones_like(ids),
        use_audio_in_video=bool(case.get("use_audio_in_video")),
        audio_seqlens=torch.tensor(lens) if lens else None, second_per_grids=torch.full(
            (n_video, ), 2 / case.get("fps", 2.0)) if n_video else None)
    return pos[:, 0]


# ---------------------------------------------------------------- pruning


def floor_(x):
    return math.floor(x + 1e-9)


def lowest(score, k):
    """The k lowest, on ties the higher index first."""
    return np.lexsort((-np.arange(len(score)), score))[:k]


def clear(score, k, noise):
    """Whether noise of that relative size on every score cannot change which k are lowest."""
    if k <= 0 or k >= len(score):
        return True
    order = np.argsort(score, kind="stable")
    a, b = score[order[:k]], score[order[k:]]
    return bool((a + noise * np.abs(a)).max() < (b - noise * np.abs(b)).min())


def cut(policy, l, k, score, chunk, chunk_max, noise):
    """Indices into the alive to drop at layer l, and whether that is safe from noise."""
    if l < policy["tds_start_layer"]:
        return lowest(score, k), clear(score, k, noise)
    s = score.astype(np.float64)
    top = int(np.argmax(score))
    near = np.flatnonzero(s * (1 + noise) >= s[top] * (1 - noise))
    safe = len(set(chunk[near])) == 1
    cand = lowest(score, min(2 * k, len(score)))
    safe &= clear(score, len(cand), noise)
    s2 = s[cand] + policy["lambda_div"] * (np.abs(chunk[top] - chunk[cand]) / max(1, chunk_max))
    order = np.lexsort((-cand, s2))
    slack = noise * s[cand]
    if k < len(cand):
        safe &= bool((s2 + slack)[order[:k]].max() < (s2 - slack)[order[k:]].min())
    return cand[order[:k]], safe


def schedule(policy, layers):
    p0, p1, mid, beta = (policy[x] for x in ("p_init", "p_final", "t_mid", "beta"))
    return [
        p0 + (p1 - p0) / (1 + math.exp(-beta * (l / layers - mid))) if l <= layers - 2 else 0.0
        for l in range(layers)
    ]


def step_zero(items, kinds, noise):
    """Which AV tokens live after step 0 (bool over the prompt), and whether noise could change it."""
    keep, safe = np.ones(len(kinds), bool), True
    audio, vision = np.flatnonzero(kinds == AUDIO), np.flatnonzero(kinds >= VIDEO)
    a = v = 0
    for item in items:
        if "mel" in item:
            s, n = item["saliency"], item["n_audio"]
            k = n - floor_(0.7 * n)
            keep[audio[a + lowest(s, k)]] = False
            safe &= clear(s, k, noise)
            a += n
        if "grid" in item:
            t, n = int(item["grid"][0]), item["n_vision"]
            if item["kind"] == VIDEO:
                x = item["vision"].float().double().view(t, n // t, -1)
                m = floor_(0.2 * (n // t))
                for g in range(t):
                    if g % 4 == 0:
                        continue
                    ref = x[g - 2] if g % 4 == 2 else x[g - 1]
                    dot = lambda p, q: (p * q).sum(-1)
                    cos = dot(x[g], ref) / torch.sqrt(
                        dot(x[g], x[g]).clamp_min(1e-12) * dot(ref, ref).clamp_min(1e-12))
                    bad = lowest(-cos.numpy(), n // t - m)
                    keep[vision[v + g * (n // t) + bad]] = False
                    safe &= clear(-cos.numpy(), n // t - m, noise)
            v += n
    return keep, safe


# ---------------------------------------------------------------- the decoder


class Decoder:
    """The text model, layer by layer over chosen rows."""
    def __init__(self, ckpt, position_ids):
        self.ckpt, self.text = ckpt, ckpt.model.model.language_model
        self.cache = DynamicCache(config=ckpt.config.text_config)
        self.weights = None
        self.pos = position_ids

    def attention(self, l, x, pos):
        """That of layer l's weights on rows x, and nothing else of the layer."""
        n = x.shape[0]
        mask = torch.full((n, n), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)[None, None]
        layer = self.text.layers[l]
        cs = self.text.rotary_emb(x[None], pos[:, None])
        return layer.self_attn(layer.input_layernorm(x[None]), attention_mask=mask, position_embeddings=cs)[1][0]

    def layer(self, l, x, pos, causal):
        n = x.shape[0]
        mask = None
        if causal:
            mask = torch.full((n, n), torch.finfo(x.dtype).min, dtype=x.dtype).triu(1)[None, None]
        cs = self.text.rotary_emb(x[None], pos[:, None])
        layer = self.text.layers[l]
        grab = layer.self_attn.register_forward_hook(lambda mod, args, out: setattr(self, "weights", out[1]))
        try:
            return layer(x[None], attention_mask=mask, position_embeddings=cs, past_key_values=self.cache,
                         use_cache=True)[0]
        finally:
            grab.remove()

    def trim(self, held):
        """Layer l, which holds rows held[l], keeps those of the last layer."""
        for layer, rows in zip(self.cache.layers, held):
            stay = torch.from_numpy(np.isin(rows, held[-1]))
            layer.keys, layer.values = layer.keys[:, :, stay], layer.values[:, :, stay]

    def logits(self, x):
        return self.ckpt.model.lm_head(self.text.norm(x[None]))[0]

    def decode(self, first, n_max, tie):
        """Greedy tokens; ends before a step whose two best logits are nearer than tie * the largest."""
        out, logits, p = [], first, int(self.pos[0, -1])
        while len(out) < n_max:
            best = logits[:self.ckpt.n_ids].float()
            top = best.topk(2).values
            if top[0] - top[1] < tie * best.abs().max():
                break
            out.append(int(best.argmax()))
            if out[-1] in self.ckpt.stop:
                break
            x = self.text.embed_tokens(torch.tensor([out[-1]]))
            at = torch.full((3, 1), p + len(out))
            for l in range(len(self.text.layers)):
                x = self.layer(l, x, at, False)
            logits = self.logits(x)[-1]
        return out


def keep_rows(x, rows, alive, kinds, stay):
    """Text and the AV tokens `stay` of the rows x."""
    alive = alive & np.isin(np.arange(len(kinds)), stay)
    kept = (kinds[rows] == TEXT) | alive[rows]
    return x[torch.from_numpy(kept)], rows[kept], alive


@torch.no_grad()
def run(ckpt, folder, case, noise=2e-5, tie=1e-3, given=None, check=True):
    """Every tensor of the case by name, plus notes: 'unsafe' is the first layer whose survivors noise could
    change (None: nowhere), 'k' the number dropped at each layer. `given` holds the tensors of the case that
    come from the file (starts_at features or ids)."""
    parts, items = segments(case["messages"])
    out, note = {}, {}
    if given and case["starts_at"] == "features":
        a = v = 0
        for item in items:
            if f"mel.{a}" in given and (item["kind"] == AUDIO or case.get("use_audio_in_video")):
                item["mel"], a = given[f"mel.{a}"], a + 1
            if item["kind"] != AUDIO:
                item["patches"], item["grid"], v = given[f"patches.{v}"], given[f"grid.{v}"], v + 1
    else:
        features(ckpt, folder, case, items)
    counts(items)
    ids, kinds, chunks, own = build(ckpt, case, items, parts)
    towers(ckpt, items)
    pos = positions(ckpt, case, ids, items)
    out.update(input_ids=torch.from_numpy(ids), position_ids=pos.clone(), kind=torch.from_numpy(kinds),
               chunk=torch.from_numpy(chunks))
    cat = lambda name: torch.cat([i[name] for i in items if name in i]) if any(name in i
                                                                               for i in items) else None
    audio, vision = cat("audio"), cat("vision")
    for i, item in enumerate([i for i in items if "mel" in i]):
        out[f"mel.{i}"] = item["mel"]
    for i, item in enumerate([i for i in items if "grid" in i]):
        out[f"patches.{i}"], out[f"grid.{i}"] = item["patches"], item["grid"]
    text = ckpt.model.model.language_model
    x = text.embed_tokens(torch.from_numpy(ids))
    if audio is not None:
        out["audio_embeds"] = audio
        x[torch.from_numpy(kinds == AUDIO)] = audio
    if vision is not None:
        out["vision_embeds"] = vision
        x[torch.from_numpy(kinds >= VIDEO)] = vision

    policy, layers = case["policy"], len(text.layers)
    pruning = policy["name"] == "omnidrop"
    alive, unsafe = kinds > 0, None
    method = None
    if policy["name"] in policies.POLICIES:
        host = lambda t: None if t is None else t.double().numpy()
        c = policies.Context(items, kinds, chunks, host(audio), host(vision),
                             host(text.embed_tokens(torch.from_numpy(ids[own]))), layers, noise, ckpt.selector())
        method = policies.POLICIES[policy["name"]](policy, c)
        keep, merged = method.entry()
        alive = np.isin(np.arange(len(kinds)), keep)
        for i, row in merged.items():
            x[i] = torch.from_numpy(row).to(x.dtype)
        unsafe = None if c.safe else 0
    if pruning:
        q = query_rows(kinds, own)
        out["query"] = torch.from_numpy(q)
        rates = schedule(policy, layers)
        if policy["intra"]:
            keep, safe = step_zero(items, kinds, noise)
            alive &= keep
            if any("saliency" in i for i in items):
                out["saliency"] = torch.from_numpy(
                    np.concatenate([i["saliency"] for i in items if "saliency" in i]))
            unsafe = None if safe else 0
    rows = np.flatnonzero((kinds == TEXT) | alive)
    x = x[torch.from_numpy(rows)]
    note["n"] = [int(alive.sum())]
    dec, held = Decoder(ckpt, pos), []
    for l in range(layers):
        out[f"hidden.{l}"] = x
        if method:
            out[f"alive.{l}"] = torch.from_numpy(rows[alive[rows]])

            def ask(at, weights, reduce, done=None, show=True):
                w = dec.attention(weights, x, pos[:, torch.from_numpy(rows)]) if done is None else done
                score = np.zeros(len(kinds))
                score[rows] = reduce(w.double().numpy())
                if show:
                    out[f"scores.{at}"] = torch.from_numpy(score[rows[alive[rows]]].astype(np.float32))
                return score

            c.ask = ask
            stay = method.before(l, rows[alive[rows]])
            if stay is not None:
                x, rows, alive = keep_rows(x, rows, alive, kinds, stay)
            note["n"].append(int(alive.sum()))
            unsafe = l + 1 if unsafe is None and not c.safe else unsafe
        held.append(rows)
        x = dec.layer(l, x, pos[:, torch.from_numpy(rows)], True)
        if method:
            c.ask = lambda at, weights, reduce: ask(at, weights, reduce, dec.weights[0], False)
            stay = method.after(l, rows[alive[rows]])
            if stay is not None:
                x, rows, alive = keep_rows(x, rows, alive, kinds, stay)
            unsafe = l + 1 if unsafe is None and not c.safe else unsafe
        if not pruning:
            continue
        here = np.flatnonzero(alive[rows])
        out[f"alive.{l}"] = torch.from_numpy(rows[here])
        k = math.floor(rates[l] * len(here))
        if k:
            w = dec.weights[0][:, torch.from_numpy(np.searchsorted(rows, q))].double().mean((0, 1)).numpy()
            score = w[here].astype(np.float32)
            out[f"scores.{l}"] = torch.from_numpy(score)
            gone, safe = cut(policy, l, k, score, chunks[rows[here]], chunks.max(), noise)
            if not safe and unsafe is None:
                unsafe = l + 1
            stay = np.ones(len(rows), bool)
            stay[here[gone]] = False
            rows, x = rows[stay], x[torch.from_numpy(stay)]
        note["n"].append(len(here) - k)
    note["n"] = note["n"][1:] if method else note["n"][:layers]
    logits = dec.logits(x)[-1]
    out["logits"] = logits
    if method and policy.get("trim"):
        dec.trim(held)
    tokens = dec.decode(logits, case["max_tokens"], tie)
    out["tokens"] = torch.tensor(tokens, dtype=torch.int64)
    note.update(unsafe=unsafe, mean=float(np.mean(note["n"])) / max(1, int((kinds > 0).sum())), av=int(
        (kinds > 0).sum()))
    if check and not pruning and not method:
        untouched(ckpt, case, items, ids, pos, out)
    if check:
        same_prompt(ckpt, case, parts, items, ids)
    return out, note


def untouched(ckpt, case, items, ids, pos, out):
    """The model as it is must give the same hidden states, logits and tokens."""
    tensors = dict(input_ids=torch.from_numpy(ids)[None],
                   attention_mask=torch.ones(1, len(ids), dtype=torch.long))
    mel = [i["mel"] for i in items if "mel" in i]
    if mel:
        most = max(m.shape[1] for m in mel)
        tensors["input_features"] = torch.stack(
            [torch.nn.functional.pad(m, (0, most - m.shape[1])) for m in mel]).to(ckpt.model.dtype)
        tensors["feature_attention_mask"] = torch.stack([(torch.arange(most) < m.shape[1]).long()
                                                         for m in mel])
    for kind, p, g in ((IMAGE, "pixel_values", "image_grid_thw"), (VIDEO, "pixel_values_videos",
                                                                   "video_grid_thw")):
        some = [i for i in items if i["kind"] == kind]
        if some:
            tensors[p] = torch.cat([i["patches"] for i in some]).to(ckpt.model.dtype)
            tensors[g] = torch.stack([i["grid"] for i in some])
    n_video = sum(i["kind"] == VIDEO for i in items)
    if n_video:
        tensors["video_second_per_grid"] = torch.full((n_video, ), 2 / case.get("fps", 2.0))
    tensors["use_audio_in_video"] = bool(case.get("use_audio_in_video"))
    full = ckpt.model(**tensors, output_hidden_states=True)
    near = lambda a, b: float((a.double() - b.double()).norm() / b.double().norm())
    worst = max([near(out["logits"], full.logits[0, -1])] + [
        near(out[f"hidden.{l}"], full.hidden_states[l][0])
        for l in range(len(ckpt.model.model.language_model.layers))
    ])
    limit = 1e-5 if ckpt.model.dtype == torch.float32 else 0.1
    assert worst < limit, f"layer by layer differs from the whole model by {worst}"
    if ckpt.model.dtype != torch.float32:
        return
    made = ckpt.model.generate(
        **tensors, max_new_tokens=max(1, len(out["tokens"])), do_sample=False,
        suppress_tokens=list(range(ckpt.n_ids, ckpt.model.lm_head.weight.shape[0])) or None,
        eos_token_id=ckpt.stop, pad_token_id=ckpt.stop[-1])[0, len(ids):].tolist()
    assert made[:len(out["tokens"])] == out["tokens"].tolist(
    ), f"generate gives {made}, not {out['tokens'].tolist()}"


def same_prompt(ckpt, case, parts, items, ids):
    """Template, placeholders and tokenizer of the reference must give the same ids.

    Not asked where user text holds an added token: there the reference takes it for one.
    """
    if any(t in text for text, kind, _ in parts if kind == -1 for t in ckpt.added):
        return
    p = ckpt.processor
    text = p.apply_chat_template(case["messages"], add_generation_prompt=True, tokenize=False)
    assert text == "".join(t for t, _, _ in parts), "the template says something else"
    video = dict(video_second_per_grid=[2 / case.get("fps", 2.0)] * len(items),
                 video_grid_thw=[i.get("grid") for i in items])
    sound = dict(num_audio_tokens=[i.get("n_audio") for i in items])
    image = dict(image_grid_thw=[i.get("grid") for i in items])
    more = dict(load_audio_from_video=bool(case.get("use_audio_in_video")), position_id_per_seconds=25,
                seconds_per_chunk=2)
    expanded, at = "", 0
    for t, kind, _ in parts:
        if kind == AUDIO:
            t = p.replace_audio_token(sound, at)
        elif kind == IMAGE:
            t = p.replace_image_token(image, at)
        elif kind == VIDEO:
            t = p.replace_video_token(video, at, processed_audio=sound,
                                      video_to_audio_indices=list(range(len(items))), **more)
        at += kind in (AUDIO, IMAGE, VIDEO)
        expanded += t
    assert p.tokenizer(expanded).input_ids == ids.tolist(), "the reference's ids are others"
