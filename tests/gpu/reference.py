#!/usr/bin/env python3
"""What `make gpu-check` compares with: Hugging Face transformers (sdpa attention) on this machine, random weights made on the
device, and the same with the pruning in the textbook order: the whole layer, then scores by the question's rows, then the cut.

    reference.py [--device cuda|cpu] [--tiny]      one JSON object a line, as it is measured; {"name", "error"} where a row failed
    reference.py --write-towers DIR [--tiny]       a checkpoint with towers of Qwen2.5-Omni-7B's sizes, for gpu_bench

Times are medians between two synchronisations, after warm-up, on random inputs. Peak memory is PyTorch's own count. Exit status 77:
no PyTorch or no transformers here, or none that sees the GPU.
"""
import argparse
import json
import math
import os
import shutil
import sys
import time
import types

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import floors  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
QUESTION = 64


def row(name, value, unit, **more):
    print(json.dumps(dict(name=name, value=value, unit=unit, **more)), flush=True)


def tried(name):
    """A function whose failure is a row, so that the next one runs."""
    def wrap(f):
        def inner(*a, **k):
            try:
                return f(*a, **k)
            except Exception as e:
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                print(json.dumps(dict(name=name, error=f"{type(e).__name__}: {str(e)[:300]}")), flush=True)
                return None
        return inner
    return wrap


def sync():
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(f, runs, warm=1):
    """Median seconds of f, and the most memory that it had taken."""
    for _ in range(warm):
        f()
    sync()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    took = []
    for _ in range(runs):
        sync()
        start = time.perf_counter()
        f()
        sync()
        took.append(time.perf_counter() - start)
    took.sort()
    return took[len(took) // 2], torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0


# ---- sizes ------------------------------------------------------------------------------------------------------

def configs():
    """The thinker's configuration: the bundled model's, with the sizes of 7B (or tiny ones)."""
    with open(os.path.join(ROOT, "models/omni-tiny/config.json")) as f:
        whole = json.load(f)
    t = whole["thinker_config"]
    t["text_config"].update(hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                            vocab_size=1024, max_window_layers=3, max_position_embeddings=32768, rope_theta=1e6)
    sections = [8, 12, 12]
    t["audio_config"].update(output_dim=256)
    t["vision_config"].update(out_hidden_size=256)
    if not tiny:
        t["text_config"].update(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
                                vocab_size=152064, max_window_layers=28)
        sections = [16, 24, 24]
        t["audio_config"].update(output_dim=3584, d_model=1280, encoder_layers=32, num_hidden_layers=32, encoder_attention_heads=20,
                                 encoder_ffn_dim=5120)
        t["vision_config"].update(out_hidden_size=3584, embed_dim=1280, hidden_size=1280, depth=32, num_heads=16, intermediate_size=3420,
                                  fullatt_block_indexes=[7, 15, 23, 31])
    for rope in ("rope_scaling", "rope_parameters"):
        t["text_config"][rope] = dict(t["text_config"].get(rope) or {}, mrope_section=sections, rope_theta=1e6)
    t["text_config"].pop("layer_types", None)
    return whole


def made(cls, config):
    """A model of this class with random weights, made on the device in bf16."""
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = cls._from_config(config, attn_implementation="sdpa").eval()
    finally:
        torch.set_default_dtype(kept)
    for p in model.parameters():
        p.requires_grad_(False)
        if p.ndim > 1:
            p.normal_(0, 0.02)
    return model.to(torch.bfloat16)


def towers_of(thinker_config):
    return made(q.Qwen2_5OmniVisionEncoder, thinker_config.vision_config), made(q.Qwen2_5OmniAudioEncoder, thinker_config.audio_config)


def write_towers(folder):
    """The towers alone matter; the decoder beside them is one small layer of the same width."""
    from safetensors.torch import save_file
    whole = configs()
    text = whole["thinker_config"]["text_config"]
    text.update(num_hidden_layers=1, intermediate_size=64, vocab_size=1024, max_window_layers=1)
    config = q.Qwen2_5OmniThinkerConfig(**whole["thinker_config"])
    vision, audio = towers_of(config)
    tensors = {f"thinker.visual.{k}": v for k, v in vision.state_dict().items()}
    tensors.update({f"thinker.audio_tower.{k}": v for k, v in audio.state_dict().items()})
    d, h, g = text["hidden_size"], text["num_attention_heads"], text["num_key_value_heads"]
    width = d // h

    def weight(*shape):
        return torch.randn(*shape, device=device, dtype=torch.bfloat16) * 0.02
    layer = "thinker.model.layers.0."
    tensors.update({
        "thinker.model.embed_tokens.weight": weight(1024, d), "thinker.lm_head.weight": weight(1024, d), "thinker.model.norm.weight": weight(d),
        layer + "input_layernorm.weight": weight(d), layer + "post_attention_layernorm.weight": weight(d),
        layer + "self_attn.q_proj.weight": weight(h * width, d), layer + "self_attn.q_proj.bias": weight(h * width),
        layer + "self_attn.k_proj.weight": weight(g * width, d), layer + "self_attn.k_proj.bias": weight(g * width),
        layer + "self_attn.v_proj.weight": weight(g * width, d), layer + "self_attn.v_proj.bias": weight(g * width),
        layer + "self_attn.o_proj.weight": weight(d, h * width), layer + "mlp.gate_proj.weight": weight(64, d),
        layer + "mlp.up_proj.weight": weight(64, d), layer + "mlp.down_proj.weight": weight(d, 64)})
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(os.path.join(ROOT, "models/omni-tiny")):
        if name.endswith((".json", ".txt", ".jinja")):
            shutil.copy(os.path.join(ROOT, "models/omni-tiny", name), folder)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(whole, f)
    save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, os.path.join(folder, "model.safetensors"))


# ---- ceilings ---------------------------------------------------------------------------------------------------

@tried("ceiling: product")
def ceilings():
    n = 64 if tiny else 8192
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    s, _ = timed(lambda: [a @ b for _ in range(5)], 5)
    row("ceiling: bf16 product 8192", 5 * 2 * n ** 3 / s * 1e-12, "TFLOP/s")
    size = 1 << 20 if tiny else 4 << 30
    x = torch.randint(0, 255, (size,), device=device, dtype=torch.uint8)
    y = torch.empty_like(x)
    s, _ = timed(lambda: y.copy_(x), 5)
    row("ceiling: copy", 2 * size / s * 1e-12, "TB/s", note="bytes read and written")
    h, g, w, r = (4, 2, 64, 64) if tiny else (28, 4, 128, 9000)
    p, k, v = (torch.randn(1, c, r, w, device=device, dtype=torch.bfloat16) for c in (h, g, g))
    s, _ = timed(lambda: torch.nn.functional.scaled_dot_product_attention(p, k, v, is_causal=True, enable_gqa=True), 5)
    row("PyTorch sdpa, causal, 9000 rows", s * 1e6, "us", note=f"{4 * h * w * r * r / 2 / s * 1e-12:.0f} TFLOP/s")


# ---- decoder ----------------------------------------------------------------------------------------------------

def positions(n):
    """Time, height, width of a film with sound and a question behind it: their cost does not depend on the values."""
    i = torch.arange(n, device=device)
    return torch.stack([i // 8, i // 8 + i % 8, i // 8 + i % 5])[:, None]


def keep_seen(module, query, key, value, mask, **k):
    """sdpa, and what the scores need: queries and keys as they meet."""
    module.seen = (query, key)
    return sdpa(module, query, key, value, mask, **k)


@tried("transformers prefill")
def prefill(model, head, n):
    x = torch.randn(1, n + QUESTION, model.config.hidden_size, device=device, dtype=torch.bfloat16)
    pos = positions(n + QUESTION)

    def once():
        y = model(inputs_embeds=x, position_ids=pos, use_cache=True)
        return y.last_hidden_state[:, -1] @ head.T
    s, peak = timed(once, 1 if n > 20000 else 3, 1)
    row(f"transformers prefill {label(n)}", s * 1e3, "ms", note=f"decoder and head of the last row; peak {peak:.1f} GB, weights included")


@tried("transformers textbook")
def textbook(model, head, n, mode):
    """Score, cut, next layer; input pruning before the first is a random choice of the same size. Without TDS."""
    alive = floors.alive(n, mode)
    layers = len(model.layers)
    if tiny:
        alive = [int(alive[0] * 0.9 ** i) for i in range(layers)] + [0]
    alive = alive[:layers] + [alive[layers - 1]]
    n0 = alive[0]
    x = torch.randn(1, n0 + QUESTION, model.config.hidden_size, device=device, dtype=torch.bfloat16)
    pos = positions(n0 + QUESTION)

    def once():
        h, cache = x, DynamicCache(config=model.config)
        rotation = model.rotary_emb(h, pos)
        for at, layer in enumerate(model.layers):
            h = layer(h, attention_mask=None, position_embeddings=rotation, past_key_values=cache, use_cache=True)
            h = h[0] if isinstance(h, tuple) else h
            n_in, n_out = alive[at], alive[at + 1]
            if n_out == n_in:
                continue
            query, key = layer.self_attn.seen
            query = query[:, :, -QUESTION:].float()
            groups = query.shape[1] // key.shape[1]
            score = torch.zeros(n_in, device=device)
            for g in range(key.shape[1]):
                w = query[0, g * groups:(g + 1) * groups] @ key[0, g].float().T / math.sqrt(key.shape[-1])
                own = torch.ones(QUESTION, QUESTION, device=device, dtype=torch.bool).triu(1)
                w[:, :, -QUESTION:] = w[:, :, -QUESTION:].masked_fill(own, -math.inf)
                score += w.softmax(-1).sum((0, 1))[:n_in]
            keep = torch.cat([score.topk(n_out).indices.sort().values, torch.arange(n_in, n_in + QUESTION, device=device)])
            h = h.index_select(1, keep)
            rotation = tuple(r.index_select(-2, keep) for r in rotation)
        for layer in model.layers:
            layer.self_attn.seen = None
        return model.norm(h)[:, -1] @ head.T
    kept = model.config._attn_implementation
    model.config._attn_implementation = "keep_seen"
    try:
        s, peak = timed(once, 1 if n > 20000 else 3, 1)
    finally:
        model.config._attn_implementation = kept
    row(f"transformers textbook {label(n)} {mode}", s * 1e3, "ms", note=f"peak {peak:.1f} GB, weights included; without TDS")


@tried("transformers decode")
def decode(model, head, n, batch):
    c = model.config
    width = c.hidden_size // c.num_attention_heads
    cache = DynamicCache(config=c)
    for layer in range(len(model.layers)):
        k = torch.randn(batch, c.num_key_value_heads, n, width, device=device, dtype=torch.bfloat16)
        cache.update(k, k.clone(), layer)
    x = torch.randn(batch, 1, c.hidden_size, device=device, dtype=torch.bfloat16)
    pos = torch.full((3, batch, 1), n, device=device)

    def once():
        y = model(inputs_embeds=x, position_ids=pos, past_key_values=cache, use_cache=True)
        return (y.last_hidden_state[:, -1] @ head.T).argmax(-1)
    s, peak = timed(once, 2 if tiny else 8, 1)
    row(f"transformers decode {label(n)} none B={batch}", s * 1e3, "ms", note=f"{batch / s:.0f} tokens/s; peak {peak:.1f} GB")


# ---- towers -----------------------------------------------------------------------------------------------------

@tried("transformers towers")
def towers(config):
    vision, audio = towers_of(config)
    steps, side, frames = (2, 8, 200) if tiny else (118, 24, 12032)
    patches = torch.randn(steps * side * side, 1176, device=device, dtype=torch.bfloat16)
    grid = torch.tensor([[steps, side, side]], device=device)
    s, peak = timed(lambda: vision(patches, grid), 2, 1)
    row("transformers video tower 20k", s * 1e3, "ms", note=f"stock: windows one by one; peak {peak:.1f} GB")
    mel = torch.randn(128, frames, device=device, dtype=torch.bfloat16)
    lens = torch.tensor([frames], device=device)
    after = (lens - 1) // 2 + 1
    s, peak = timed(lambda: audio(mel, feature_lens=lens, aftercnn_lens=after), 2, 1)
    row("transformers audio tower 20k", s * 1e3, "ms", note=f"stock; peak {peak:.1f} GB")


def label(n):
    return "20k" if tiny else f"{n // 1000}k"


def main():
    global torch, q, DynamicCache, sdpa, device, tiny
    a = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    a.add_argument("--device", default="")
    a.add_argument("--tiny", action="store_true")
    a.add_argument("--write-towers", metavar="DIR")
    o = a.parse_args()
    tiny = o.tiny
    try:
        import torch
        import transformers
        from transformers import DynamicCache
        from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa
        from transformers.models.qwen2_5_omni import configuration_qwen2_5_omni, modeling_qwen2_5_omni
        q = types.SimpleNamespace()
        for module in (configuration_qwen2_5_omni, modeling_qwen2_5_omni):
            vars(q).update({k: v for k, v in vars(module).items() if k.startswith("Qwen2_5Omni")})
    except Exception as e:                     # not only missing: a library of CUDA that it wants and that is not there
        print(f"{sys.executable} has no PyTorch with transformers: {type(e).__name__}: {e}".replace("\n", " "))
        return 77
    if o.device == "cuda" and not torch.cuda.is_available():
        print(f"PyTorch {torch.__version__} sees no GPU (made for CUDA {torch.version.cuda})")
        return 77
    device = torch.device(o.device or ("cuda" if torch.cuda.is_available() and not tiny else "cpu"))
    torch.manual_seed(1)
    if device.type == "cpu":
        torch.set_num_threads(1)               # tiny sizes: threads would wait for each other
    torch.set_grad_enabled(False)
    if o.write_towers:
        write_towers(o.write_towers)
        return 0
    transformers.AttentionInterface.register("keep_seen", keep_seen)
    row("versions", f"torch {torch.__version__}, transformers {transformers.__version__}", "")
    ceilings()
    config = q.Qwen2_5OmniThinkerConfig(**configs()["thinker_config"])
    model = made(q.Qwen2_5OmniThinkerTextModel, config.text_config)
    head = torch.randn(config.text_config.vocab_size, config.text_config.hidden_size, device=device, dtype=torch.bfloat16) * 0.02
    sizes = [100] if tiny else [20000, 4000, 10000, 40000]
    for n in sizes:                        # what is expected of is measured first
        prefill(model, head, n)
        for mode in ("omnidrop 30 %", "omnidrop 20 %"):
            textbook(model, head, n, mode)
    for batch in (2,) if tiny else (1, 8, 32):
        decode(model, head, sizes[0], batch)
    del model, head
    if device.type == "cuda":
        torch.cuda.empty_cache()
    towers(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
