"""model.py - omni-tiny: a Qwen2.5-Omni thinker, small enough to be trained on two CPU cores.

The parameters live in one flat dict under the published tensor names (without `thinker.`), and the
functions below are a lean forward pass over it: batched chunks for the audio tower, batched
slices for the vision tower, one call per decoder layer. evaluate.py shows that transformers'
own class computes the same logits from the same file.

    CONFIG                     sizes, as in config.json
    tokenizer(path)            byte-level BPE with the 22 added tokens
    init_params()              dict name -> f32 tensor
    log_mel / patches          front ends
    audio_tower / vision_tower features [.., H]
    Prompt                     ids, positions and places of the media of one conversation
    decoder(...)               hidden states; logits = hidden @ lm_head.T
"""
import json
import math
import os

import numpy as np
import torch
import torch.nn.functional as F

AUDIO = dict(num_mel_bins=128, d_model=128, encoder_layers=3, encoder_attention_heads=4,
             encoder_ffn_dim=384, n_window=100, max_source_positions=1500)
VISION = dict(depth=3, hidden_size=96, num_heads=4, intermediate_size=256, patch_size=14,
              temporal_patch_size=2, spatial_merge_size=2, window_size=112, fullatt_block_indexes=[2],
              in_channels=3)
TEXT = dict(hidden_size=192, intermediate_size=512, num_hidden_layers=12, num_attention_heads=6,
            num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=10000.0, mrope_section=[8, 4, 4],
            vocab_size=768, max_position_embeddings=4096)
ADDED = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>",
         "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_bos|>", "<|vision_eos|>",
         "<|vision_pad|>", "<|IMAGE|>", "<|VIDEO|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>",
         "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"]
FIRST_ADDED = TEXT["vocab_size"] - len(ADDED)
ID = {t: FIRST_ADDED + i for i, t in enumerate(ADDED)}
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


# ---------------------------------------------------------------- tokenizer

def tokenizer(path, corpus=None):
    """Load tokenizer.json, or train it on `corpus` if the file does not exist."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    if os.path.exists(path):
        return Tokenizer.from_file(path)
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=FIRST_ADDED, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    data = json.loads(tok.to_str())                                # reserved entries, if the corpus was too small
    for i in range(tok.get_vocab_size(), FIRST_ADDED):
        data["model"]["vocab"][f"<|reserved_{i}|>"] = i
    tok = Tokenizer.from_str(json.dumps(data))
    for i, t in enumerate(ADDED):
        a = AddedToken(t, normalized=False, special=i < 14)
        (tok.add_special_tokens if i < 14 else tok.add_tokens)([a])
    assert all(tok.token_to_id(t) == i for t, i in ID.items())
    tok.save(path)
    return tok


# ---------------------------------------------------------------- parameters

def shapes():
    """name -> shape, the published names without the prefix `thinker.`"""
    a, v, t = AUDIO, VISION, TEXT
    H, d, f = t["hidden_size"], a["d_model"], a["encoder_ffn_dim"]
    s = {"audio_tower.conv1.weight": (d, 128, 3), "audio_tower.conv1.bias": (d,),
         "audio_tower.conv2.weight": (d, d, 3), "audio_tower.conv2.bias": (d,),
         "audio_tower.ln_post.weight": (d,), "audio_tower.ln_post.bias": (d,),
         "audio_tower.proj.weight": (H, d), "audio_tower.proj.bias": (H,),
         "audio_tower.audio_bos_eos_token.weight": (2, H)}
    for i in range(a["encoder_layers"]):
        p = f"audio_tower.layers.{i}."
        for n, shape in (("self_attn.q_proj", (d, d)), ("self_attn.k_proj", (d, d)), ("self_attn.v_proj", (d, d)),
                         ("self_attn.out_proj", (d, d)), ("fc1", (f, d)), ("fc2", (d, f)),
                         ("self_attn_layer_norm", (d,)), ("final_layer_norm", (d,))):
            s[p + n + ".weight"] = shape
            if n != "self_attn.k_proj":
                s[p + n + ".bias"] = shape[:1]
    d, f = v["hidden_size"], v["intermediate_size"]
    s["visual.patch_embed.proj.weight"] = (d, 3, 2, 14, 14)
    for i in range(v["depth"]):
        p = f"visual.blocks.{i}."
        s[p + "norm1.weight"] = s[p + "norm2.weight"] = (d,)
        for n, shape in (("attn.q", (d, d)), ("attn.k", (d, d)), ("attn.v", (d, d)), ("attn.proj", (d, d)),
                         ("mlp.gate_proj", (f, d)), ("mlp.up_proj", (f, d)), ("mlp.down_proj", (d, f))):
            s[p + n + ".weight"], s[p + n + ".bias"] = shape, shape[:1]
    s["visual.merger.ln_q.weight"] = (d,)
    s["visual.merger.mlp.0.weight"], s["visual.merger.mlp.0.bias"] = (4 * d, 4 * d), (4 * d,)
    s["visual.merger.mlp.2.weight"], s["visual.merger.mlp.2.bias"] = (H, 4 * d), (H,)
    kv = H // t["num_attention_heads"] * t["num_key_value_heads"]
    s["model.embed_tokens.weight"] = s["lm_head.weight"] = (t["vocab_size"], H)
    s["model.norm.weight"] = (H,)
    for i in range(t["num_hidden_layers"]):
        p = f"model.layers.{i}."
        s[p + "input_layernorm.weight"] = s[p + "post_attention_layernorm.weight"] = (H,)
        for n, rows in (("q", H), ("k", kv), ("v", kv)):
            s[p + f"self_attn.{n}_proj.weight"], s[p + f"self_attn.{n}_proj.bias"] = (rows, H), (rows,)
        s[p + "self_attn.o_proj.weight"] = (H, H)
        s[p + "mlp.gate_proj.weight"] = s[p + "mlp.up_proj.weight"] = (t["intermediate_size"], H)
        s[p + "mlp.down_proj.weight"] = (H, t["intermediate_size"])
    return s


def init_params(seed=0):
    g = torch.Generator().manual_seed(seed)
    out = {}
    for n, shape in shapes().items():
        if n.endswith(".bias"):
            x = torch.zeros(shape)
        elif len(shape) == 1:
            x = torch.ones(shape)
        else:
            fan = math.prod(shape[1:])
            std = 0.1 if "embed_tokens" in n or "bos_eos" in n else 0.02 if n == "lm_head.weight" else fan ** -0.5
            for end, depth in (("o_proj.weight", TEXT["num_hidden_layers"]), ("down_proj.weight", TEXT["num_hidden_layers"]),
                               ("out_proj.weight", 3), ("fc2.weight", 3), ("attn.proj.weight", 3)):
                if n.endswith(end):
                    std /= math.sqrt(2 * depth)
            x = torch.randn(shape, generator=g) * std
        out[n] = x
    return out


# ---------------------------------------------------------------- front ends

def mel_filters():
    mel = lambda f: 3 * f / 200 if f < 1000 else 15 + 27 * math.log(f / 1000) / math.log(6.4)
    hz = lambda m: 200 * m / 3 if m < 15 else 1000 * math.exp((m - 15) * math.log(6.4) / 27)
    p = np.array([hz(m) for m in np.linspace(0, mel(8000), 130)])
    f = 40.0 * np.arange(201)
    up = (f[None] - p[:-2, None]) / (p[1:-1] - p[:-2])[:, None]
    down = (p[2:, None] - f[None]) / (p[2:] - p[1:-1])[:, None]
    return torch.tensor((2 / (p[2:] - p[:-2]))[:, None] * np.maximum(0, np.minimum(up, down)), dtype=torch.float32)


_MEL, _HANN = mel_filters(), torch.hann_window(400)


def log_mel(waves):
    """List of float32 waves -> mel [B, 128, max frames], lengths L = ceil(n / 160)."""
    lengths = [-(-len(w) // 160) for w in waves]
    n = max(lengths) * 160
    x = torch.zeros(len(waves), n + 800)
    for row, w in zip(x, waves):
        row[:len(w)] = torch.from_numpy(w)
    x = torch.cat([x[:, 1:201].flip(1), x], 1)
    p = torch.view_as_real(torch.stft(x, 400, 160, window=_HANN, center=False, return_complex=True)).pow(2).sum(-1)
    s = (_MEL @ p).clamp(min=1e-10).log10()
    s = torch.maximum(s, s.amax((1, 2), keepdim=True) - 8)
    return ((s + 4) / 4)[:, :, :max(lengths)], lengths


def n_audio_tokens(frames):
    return (frames + 1) // 4


def patches(frames):
    """uint8 frames [B, F, h, w, 3] (F even) -> [B * F/2, patches, 1176] in merge-group order."""
    x = (frames.float() / 255 - MEAN) / STD
    B, n, h, w, _ = x.shape
    x = x.view(B, n // 2, 2, h // 28, 2, 14, w // 28, 2, 14, 3).permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)
    return x.reshape(B * n // 2, h * w // 196, 1176)


# ---------------------------------------------------------------- towers

def _sinusoid(n, d):
    z = torch.exp(-math.log(10000) / (d // 2 - 1) * torch.arange(d // 2))
    a = torch.arange(n)[:, None] * z[None]
    return torch.cat([a.sin(), a.cos()], 1)


def audio_chunks(mel, lengths):
    """Cut every clip into chunks of 200 frames: chunks [N, 128, 200], frames in each [N]."""
    out, t = [], []
    for m, n in zip(mel, lengths):
        for a in range(0, n, 200):
            k = min(200, n - a)
            out.append(F.pad(m[:, a:a + k], (0, 200 - k)))
            t.append(k)
    while len(out) % 8:                                             # few shapes, see train.collate
        out.append(torch.zeros_like(out[0])); t.append(200)
    return torch.stack(out), torch.tensor(t)


def plain(q, k, v, keep=None):
    """Attention over few keys: softmax(q k^T / sqrt(d)) v, with a mask of what may be read."""
    s = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if keep is not None:
        s = s.masked_fill(~keep, -1e9)
    return s.softmax(-1) @ v


def audio_tower(p, mel, lengths, dtype=torch.float32, want_attention=False):
    """-> list of [N_a, H], one per clip (and the saliency of every token, omnidrop.md step 0)."""
    x, t = audio_chunks(mel, lengths)
    d, heads = AUDIO["d_model"], AUDIO["encoder_attention_heads"]
    w = lambda n: p["audio_tower." + n]
    x = F.gelu(F.conv1d(x.to(dtype), w("conv1.weight"), w("conv1.bias"), padding=1))
    x = x * (torch.arange(200) < t[:, None])[:, None].to(dtype)
    x = F.gelu(F.conv1d(x, w("conv2.weight"), w("conv2.bias"), stride=2, padding=1)).transpose(1, 2)
    x = x + _sinusoid(100, d).to(dtype)
    u = (t - 1) // 2 + 1
    mask = None if bool((u == 100).all()) else (torch.arange(100) < u[:, None])[:, None, None]
    N = len(x)
    split = lambda y: y.view(N, 100, heads, d // heads).transpose(1, 2)
    for i in range(AUDIO["encoder_layers"]):
        q = lambda n: (w(f"layers.{i}.{n}.weight"), w(f"layers.{i}.{n}.bias"))
        h = F.layer_norm(x, (d,), *q("self_attn_layer_norm"))
        qq = split(F.linear(h, *q("self_attn.q_proj")))
        kk = split(F.linear(h, w(f"layers.{i}.self_attn.k_proj.weight")))
        vv = split(F.linear(h, *q("self_attn.v_proj")))
        if want_attention and i == AUDIO["encoder_layers"] - 1:
            a = qq.float() @ kk.float().transpose(2, 3) / math.sqrt(d // heads)
            a = (a if mask is None else a.masked_fill(~mask, -1e9)).softmax(-1)
            rows = (torch.arange(100) < u[:, None])[:, None, :, None]
            received = (a * rows).sum((1, 2)) / heads / u[:, None] * (t[:, None] / 200)
        a = plain(qq, kk, vv, mask)
        x = x + F.linear(a.transpose(1, 2).reshape(N, 100, d), *q("self_attn.out_proj"))
        h = F.layer_norm(x, (d,), *q("final_layer_norm"))
        x = x + F.linear(F.gelu(F.linear(h, *q("fc1"))), *q("fc2"))
    x = (x[:, 0::2] + x[:, 1::2]) / 2
    x = F.layer_norm(x, (d,), w("ln_post.weight"), w("ln_post.bias"))
    x = F.linear(x, w("proj.weight"), w("proj.bias"))
    if want_attention:
        received = (received[:, 0::2] + received[:, 1::2]) / 2
    out, sal, c = [], [], 0
    for n in lengths:
        k = -(-n // 200)
        out.append(x[c:c + k].reshape(k * 50, -1)[:n_audio_tokens(n)])
        if want_attention:
            sal.append(received[c:c + k].reshape(-1)[:n_audio_tokens(n)])
        c += k
    return (out, sal) if want_attention else out


def rms(x, weight, eps=1e-6):
    y = x.float()
    return weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def vision_tower(p, x, h, w_, dtype=torch.float32):
    """Patches [S, h*w, 1176] of S equal slices of h x w patches -> tokens [S, h*w/4, H]."""
    d, heads = VISION["hidden_size"], VISION["num_heads"]
    hd = d // heads
    w = lambda n: p["visual." + n]
    x = F.linear(x.to(dtype), w("patch_embed.proj.weight").view(d, 1176))
    by, bx, iy, ix = torch.meshgrid(*map(torch.arange, (h // 2, w_ // 2, 2, 2)), indexing="ij")
    yy, xx = (2 * by + iy).reshape(-1), (2 * bx + ix).reshape(-1)
    inv = 10000.0 ** (-torch.arange(0, hd // 2, 2) / (hd // 2))
    ang = torch.cat([yy[:, None] * inv, xx[:, None] * inv], 1)
    cos, sin = (torch.cat([f(ang)] * 2, 1) for f in (torch.cos, torch.sin))
    side = VISION["window_size"] // 28
    win = (by // side * 1000 + bx // side).reshape(-1)
    mask = None if h // 2 <= side and w_ // 2 <= side else win[:, None] == win[None]
    S, n = x.shape[:2]
    split = lambda y: y.view(S, n, heads, hd).transpose(1, 2)
    for i in range(VISION["depth"]):
        lin = lambda y, m: F.linear(y, w(f"blocks.{i}.{m}.weight"), w(f"blocks.{i}.{m}.bias"))
        y = rms(x, w(f"blocks.{i}.norm1.weight"))
        q, k = (rotate(split(lin(y, f"attn.{m}")).float(), cos, sin).to(dtype) for m in "qk")
        a = plain(q, k, split(lin(y, "attn.v")), None if i in VISION["fullatt_block_indexes"] else mask)
        x = x + lin(a.transpose(1, 2).reshape(S, n, d), "attn.proj")
        y = rms(x, w(f"blocks.{i}.norm2.weight"))
        x = x + lin(F.silu(lin(y, "mlp.gate_proj")) * lin(y, "mlp.up_proj"), "mlp.down_proj")
    x = rms(x, w("merger.ln_q.weight")).reshape(S, n // 4, 4 * d)
    x = F.gelu(F.linear(x, w("merger.mlp.0.weight"), w("merger.mlp.0.bias")))
    return F.linear(x, w("merger.mlp.2.weight"), w("merger.mlp.2.bias"))


# ---------------------------------------------------------------- prompts

class Prompt:
    """Ids and positions of one conversation whose user turn is: media, then question.

    ids [n], pos [3, n]; kind [n]: 0 text, 1 audio, 2 vision; chunk [n]: the 2 s chunk of a media token;
    second [n]: the grid step / second of a media token (-1 elsewhere); next: first text position.
    """

    def __init__(self, tok, n_audio=0, grid=None, image=False, system="You are a helpful assistant."):
        enc = lambda s: tok.encode(s, add_special_tokens=False).ids
        self.ids, self.pos, self.kind, self.chunk, self.second = [], [], [], [], []
        self.next = 0
        self._text(enc(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"))
        if grid is not None:
            t, h, w = grid[0], grid[1] // 2, grid[2] // 2
            video = [(25 * k, y, x, k) for k in range(t) for y in range(h) for x in range(w)]
        if grid is not None and n_audio:                            # audio in video
            s0 = self.next
            self._put(ID["<|vision_bos|>"], (s0,) * 3)
            self._put(ID["<|audio_bos|>"], (s0,) * 3)
            s, last = s0 + 1, 0
            for c in range(max(-(-t // 2), -(-n_audio // 50))):
                for k, y, x, j in video[c * 2 * h * w:(c + 1) * 2 * h * w]:
                    last = max(s + k, s + y, s + x)
                    self._put(ID["<|VIDEO|>"], (s + k, s + y, s + x), 2, c, j)
                for j in range(50 * c, min(50 * c + 50, n_audio)):
                    last = s + j
                    self._put(ID["<|AUDIO|>"], (s + j,) * 3, 1, c, j // 25)
            self._put(ID["<|audio_eos|>"], (last + 1,) * 3)
            self._put(ID["<|vision_eos|>"], (last + 1,) * 3)
            self.next = last + 2
        elif grid is not None:
            self._text([ID["<|vision_bos|>"]])
            s, last = self.next, 0
            for k, y, x, j in video:
                last = max(last, s + k, s + y, s + x)
                self._put(ID["<|IMAGE|>" if image else "<|VIDEO|>"], (s + k, s + y, s + x), 2, j // 2, j)
            self.next = last + 1
            self._text([ID["<|vision_eos|>"]])
        elif n_audio:
            self._text([ID["<|audio_bos|>"]])
            for j in range(n_audio):
                self._put(ID["<|AUDIO|>"], (self.next + j,) * 3, 1, j // 50, j // 25)
            self.next += n_audio
            self._text([ID["<|audio_eos|>"]])

    def _put(self, i, pos, kind=0, chunk=-1, second=-1):
        self.ids.append(i); self.pos.append(pos); self.kind.append(kind)
        self.chunk.append(chunk); self.second.append(second)

    def _text(self, ids):
        for i in ids:
            self._put(i, (self.next,) * 3)
            self.next += 1


# ---------------------------------------------------------------- decoder

def rope_tables(pos, dtype=torch.float32):
    """pos [B, 3, S] -> cos, sin [B, 1, S, head_dim] with the sections of TMRoPE."""
    hd = TEXT["hidden_size"] // TEXT["num_attention_heads"]
    inv = 1.0 / TEXT["rope_theta"] ** (torch.arange(0, hd, 2).float() / hd)
    axis = torch.repeat_interleave(torch.arange(3), torch.tensor(TEXT["mrope_section"]))
    ang = pos[:, axis].transpose(1, 2).float() * inv
    ang = torch.cat([ang, ang], -1)[:, None]
    return ang.cos().to(dtype), ang.sin().to(dtype)


def qkv(p, i, h):
    """Normed input [B, S, H] -> q [B, heads, S, hd], k, v [B, kv heads, S, hd] before rotation."""
    B, S, _ = h.shape
    hd = TEXT["hidden_size"] // TEXT["num_attention_heads"]
    n = f"model.layers.{i}.self_attn."
    w = torch.cat([p[n + f"{c}_proj.weight"] for c in "qkv"])
    b = torch.cat([p[n + f"{c}_proj.bias"] for c in "qkv"])
    y = F.linear(h, w, b).view(B, S, -1, hd).transpose(1, 2)
    return y.split([TEXT["num_attention_heads"]] + 2 * [TEXT["num_key_value_heads"]], 1)


def mlp(p, i, x):
    n = f"model.layers.{i}."
    h = rms(x, p[n + "post_attention_layernorm.weight"])
    g = F.linear(h, torch.cat([p[n + "mlp.gate_proj.weight"], p[n + "mlp.up_proj.weight"]])).chunk(2, -1)
    return x + F.linear(F.silu(g[0]) * g[1], p[n + "mlp.down_proj.weight"])


def attend(q, k, v, mask, rows=192):
    """Causal grouped-query attention with an additive mask [B, 1, S, S], in blocks of rows that read the columns up to
    their own end: on a CPU in bf16 several times faster than one call for all rows, backward above all."""
    B, H, S, hd = q.shape
    kv = k.shape[1]
    g = H // kv
    q = (q * hd ** -0.5).view(B, kv, g, S, hd)
    k, v = k.reshape(B * kv, S, hd).transpose(1, 2), v.reshape(B * kv, S, hd)
    out = []
    for a in range(0, S, rows):
        e = min(S, a + rows)
        s = q[:, :, :, a:e].reshape(B * kv, g * (e - a), hd) @ k[:, :, :e]
        s = (s.view(B, H, e - a, e) + mask[:, :, a:e, :e]).softmax(-1).view(B * kv, g * (e - a), e)
        out.append((s @ v[:, :e]).view(B, H, e - a, hd))
    return torch.cat(out, 2)


def layer(p, i, x, cos, sin, mask, probe=None):
    """One decoder layer; mask is additive [B, 1, S, S]. A list `probe` receives the rotated q and k."""
    n = f"model.layers.{i}."
    q, k, v = qkv(p, i, rms(x, p[n + "input_layernorm.weight"]))
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    if probe is not None:
        probe += [q, k]
    a = attend(q, k, v, mask)
    x = x + F.linear(a.transpose(1, 2).reshape(x.shape), p[n + "self_attn.o_proj.weight"])
    return mlp(p, i, x)


def decoder(p, x, pos, mask, tap=None, look=None):
    """Embeddings [B, S, H] -> final normed hidden states (and those leaving layer `tap`, q and k of the layers `look`).
    mask: one for all layers, or a list of one for each."""
    cos, sin = rope_tables(pos, x.dtype)
    mid, qk = None, {i: [] for i in look or ()}
    for i in range(TEXT["num_hidden_layers"]):
        x = layer(p, i, x, cos, sin, mask[i] if isinstance(mask, list) else mask, qk.get(i))
        if i == tap:
            mid = x
    x = rms(x, p["model.norm.weight"])
    return (x, mid, qk) if tap is not None else x
