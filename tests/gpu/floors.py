"""The least time that work can take on one H200, for the rows of gpu-check: work over the rate of the unit that does it, launches
back to back, terms added. Model: the thinker of Qwen2.5-Omni-7B in bf16. Rates: products and copies as measured on that GPU, the
others are plans (the best that is published for attention on Hopper).

A row names its work in one of these ways:
  flop, byte, rate     the larger of flop / RATE[rate] and byte / BW
  prefill [n, mode]    decode [n, mode, batch, text]    tower [kind, n]
"""
import math

RATE = dict(gemm=790e12,     # bf16 products, random data
            att=600e12,      # causal attention, head dim 128, long rows
            enc=250e12,      # blocks of 64 to 576 rows, head dim 80 and 64
            score=300e12)    # products of queries and keys with exp and sums
BW = 4.3e12                  # bytes a second, read and written
STEP = 4e-6                  # a small kernel that waits for the one before

L, D, FF, HQ, HKV, HD, V = 28, 3584, 18944, 28, 4, 128, 152064
QKV = (HQ + 2 * HKV) * HD
W_QKV, W_O, W_GU, W_DN = D * QKV, HQ * HD * D, 2 * D * FF, FF * D
W_LAYER = W_QKV + W_O + W_GU + W_DN
KV_TOKEN = 2 * HKV * HD * 2  # bytes of a token in a layer
VL, VD, VFF, AL, AD, AFF = 32, 1280, 3456, 32, 1280, 5120   # VFF: 3420 rounded up
VIDEO = 144 / 169            # of raw tokens of a film with sound

# Input pruning keeps r0 of the raw tokens; then p_init, p_final.
MODES = {"none": (1.0, None), "omnidrop 30 %": (0.45, (0.0, 0.2)), "omnidrop 20 %": (0.45, (0.02, 0.5))}


def alive(n, mode):
    """Media tokens entering each layer; the last entry: left after all."""
    r0, p = MODES[mode]
    out = [math.floor(r0 * n)]
    for layer in range(L):
        rate = 0.0 if p is None or layer == L - 1 else p[0] + (p[1] - p[0]) / (1 + math.exp(-20 * (layer / L - 0.5)))
        out.append(out[-1] - math.floor(rate * out[-1]))
    return out


def decoder(n, mode, text=64):
    """Seconds of one prefill, score first: rows that a layer drops are not in its attention and MLP."""
    ns, t = alive(n, mode), 0.0

    def product(rows, w):
        return max(2 * rows * w / RATE["gemm"], 2 * w / BW)
    for layer in range(L):
        n_in, n_out, last = ns[layer], ns[layer + 1], layer == L - 1
        rows_in, rows_out = n_in + text, 1 if last else n_out + text
        q_av, q_text = (0, 1) if last else (n_out, text)
        t += product(rows_in, W_QKV) + product(rows_out, W_O) + product(rows_out, W_GU) + product(rows_out, W_DN)
        t += 4 * HQ * HD * (q_av * n_in / 2 + q_text * (n_in + text / 2)) / RATE["att"]
        if n_out < n_in and not last:
            t += 2 * HQ * HD * text * n_in / RATE["score"] + 3 * STEP
        t += 2 * (rows_in * (2 * D + 2 * QKV) + rows_out * (6 * D + 3 * FF)) / BW
    return t + 2 * V * D / BW


def tower(kind, n):
    """Seconds of one tower for n raw tokens of film with sound, none of them dropped."""
    if kind == "video":
        v = n * VIDEO
        p = 4 * v
        flop = 2 * p * VL * (4 * VD * VD + 3 * VD * VFF) + 2 * p * 1176 * VD + 2 * v * (5120 * 5120 + 5120 * D)
        return flop / RATE["gemm"] + 4 * p * VD * (28 * 64 + 4 * 576) / RATE["enc"] + p * VL * 2 * (14 * VD + 3 * VFF) / BW
    f = 2 * n * (1 - VIDEO)
    flop = 2 * f * AL * (4 * AD * AD + 2 * AD * AFF) + 2 * f * (6 * 128 * AD + 3 * AD * AD) + f * AD * D
    return flop / RATE["gemm"] + 4 * f * AD * AL * 100 / RATE["enc"] + f * AL * 2 * 8 * AD / BW


def prefill(n, mode, towers=False, text=64):
    return decoder(n, mode, text) + (tower("video", n) + tower("audio", n) if towers else 0)


def decode(n, mode, batch, text=192):
    w = 2 * (L * W_LAYER + V * D)
    keys = sum(x + text for x in alive(n, mode)[:L])
    return max(w / BW, w * batch / RATE["gemm"]) + batch * keys * KV_TOKEN / BW


SCALE = {"s": 1, "ms": 1e3, "us": 1e6}


def of(row):
    """The floor in the row's own unit of time, or None."""
    scale = SCALE.get(row.get("unit"))
    if scale is None:
        return None
    if "prefill" in row:
        return scale * prefill(*row["prefill"])
    if "decode" in row:
        return scale * decode(*row["decode"])
    if "tower" in row:
        return scale * tower(*row["tower"])
    if "rate" in row or "byte" in row:
        return scale * max(row.get("flop", 0) / RATE[row.get("rate", "gemm")], row.get("byte", 0) / BW)
    return None
