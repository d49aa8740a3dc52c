#!/usr/bin/env python3
"""Write a GGUF file of a Qwen2 text decoder with random bf16 weights, for measurements of speed only.

usage: make_gguf.py OUT.gguf [--layers 24 --width 896 --ff 4864 --heads 14 --kv-heads 2 --head-dim 64
                              --vocab 151936 --untied --seed 1]

The defaults are the 0.5B shape of `make bench`: 24 layers, d 896, ff 4864, 14/2 heads of 64, 151936 words,
embedding tied to the head. Matrices are N(0, 1/fan_in) rounded to bf16, norms 1, biases 0 in f32, vocabulary
"no_vocab" (enough for a bench program that makes its own tokens). The same arguments give the same bytes.

Source of the layout: ggml/docs/gguf.md, version 3. Needs Python 3.9 or newer and nothing else.
"""
import argparse
import array
import os
import random
import struct
import sys

ALIGN = 32                          # bytes, GGUF's default alignment of the data
U32, F32, STR = 4, 6, 8             # types of a metadata value
TENSOR_F32, TENSOR_BF16 = 0, 30     # types of a tensor
FILE_MOSTLY_BF16 = 32
POOL = 1 << 20                      # distinct random values for each fan-in; a tensor is stretches of them


def string(s):
    b = s.encode()
    return struct.pack("<Q", len(b)) + b


def entry(key, kind, value):
    """One metadata pair."""
    body = string(value) if kind == STR else struct.pack("<I" if kind == U32 else "<f", value)
    return string(key) + struct.pack("<I", kind) + body


def bf16_pool(rng, fan_in):
    """POOL values N(0, 1/fan_in) as bf16, rounded to nearest even; bytes."""
    sigma = fan_in ** -0.5
    words = array.array("I", array.array("f", (rng.gauss(0.0, sigma) for _ in range(POOL))).tobytes())
    half = array.array("H", ((w + 0x7FFF + (w >> 16 & 1)) >> 16 for w in words))
    if sys.byteorder != "little":
        half.byteswap()
    return half.tobytes()


def shapes(a):
    """[(name, rows, columns or 0 for a vector, value of a vector)], in the order of the file."""
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    out = [("token_embd.weight", a.vocab, a.width, None), ("output_norm.weight", a.width, 0, 1.0)]
    if a.untied:
        out.append(("output.weight", a.vocab, a.width, None))
    for i in range(a.layers):
        out += [(f"blk.{i}.{name}", rows, cols, value) for name, rows, cols, value in (
            ("attn_norm.weight", a.width, 0, 1.0),
            ("attn_q.weight", q, a.width, None),
            ("attn_k.weight", kv, a.width, None),
            ("attn_v.weight", kv, a.width, None),
            ("attn_q.bias", q, 0, 0.0),
            ("attn_k.bias", kv, 0, 0.0),
            ("attn_v.bias", kv, 0, 0.0),
            ("attn_output.weight", a.width, q, None),
            ("ffn_norm.weight", a.width, 0, 1.0),
            ("ffn_gate.weight", a.ff, a.width, None),
            ("ffn_up.weight", a.ff, a.width, None),
            ("ffn_down.weight", a.width, a.ff, None))]
    return out


def padded(n):
    return -(-n // ALIGN) * ALIGN


def write(path, a):
    """Write the model of the sizes in `a` to path. The file appears under its name when it is whole."""
    meta = [entry("general.architecture", STR, "qwen2"),
            entry("general.name", STR, "random"),
            entry("general.file_type", U32, FILE_MOSTLY_BF16),
            entry("qwen2.context_length", U32, 32768),
            entry("qwen2.embedding_length", U32, a.width),
            entry("qwen2.block_count", U32, a.layers),
            entry("qwen2.feed_forward_length", U32, a.ff),
            entry("qwen2.attention.head_count", U32, a.heads),
            entry("qwen2.attention.head_count_kv", U32, a.kv_heads),
            entry("qwen2.attention.key_length", U32, a.head_dim),
            entry("qwen2.attention.value_length", U32, a.head_dim),
            entry("qwen2.attention.layer_norm_rms_epsilon", F32, 1e-6),
            entry("qwen2.rope.freq_base", F32, 1e6),
            entry("qwen2.vocab_size", U32, a.vocab),
            entry("tokenizer.ggml.model", STR, "no_vocab")]
    tensors = shapes(a)
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(meta))] + meta
    offset = 0
    for name, rows, cols, _ in tensors:
        dims = (cols, rows) if cols else (rows,)          # fastest first
        kind, n_bytes = (TENSOR_BF16, rows * cols * 2) if cols else (TENSOR_F32, rows * 4)
        head.append(string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset))
        offset += padded(n_bytes)
    header = b"".join(head)

    rng = random.Random(a.seed)
    pools = {}
    part = path + ".part"
    try:
        with open(part, "wb") as f:
            f.write(header.ljust(padded(len(header)), b"\0"))
            for _, rows, cols, value in tensors:
                if not cols:
                    data = struct.pack("<f", value) * rows
                    f.write(data.ljust(padded(len(data)), b"\0"))
                    continue
                if cols not in pools:
                    pools[cols] = bf16_pool(rng, cols)
                left = rows * cols * 2
                pad = padded(left) - left
                while left:
                    start = 2 * rng.randrange(POOL // 2)  # stretches of at least half a pool
                    stretch = pools[cols][start:start + left]
                    f.write(stretch)
                    left -= len(stretch)
                f.write(b"\0" * pad)
        os.replace(part, path)
    except BaseException:
        if os.path.exists(part):
            os.unlink(part)
        raise


def arguments(argv=None):
    p = argparse.ArgumentParser(description="write a GGUF decoder with random bf16 weights")
    p.add_argument("out")
    for name, default in (("layers", 24), ("width", 896), ("ff", 4864), ("heads", 14), ("kv-heads", 2),
                          ("head-dim", 64), ("vocab", 151936), ("seed", 1)):
        p.add_argument("--" + name, type=int, default=default, help=f"{default} when not given")
    p.add_argument("--untied", action="store_true", help="a head of its own")
    a = p.parse_args(argv)
    for name in ("layers", "width", "ff", "heads", "kv_heads", "head_dim", "vocab"):
        if getattr(a, name) < 1:
            p.error(f"--{name.replace('_', '-')} is {getattr(a, name)}, at least 1 is needed")
    if a.heads % a.kv_heads:
        p.error(f"--heads {a.heads} is not a multiple of --kv-heads {a.kv_heads}")
    return a


if __name__ == "__main__":
    args = arguments()
    try:
        write(args.out, args)
    except OSError as e:
        sys.exit(f"make_gguf.py: cannot write {args.out}: {e.strerror}")
    print(f"{args.out}: {os.path.getsize(args.out)} bytes")
