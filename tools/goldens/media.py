"""media.py - test media: made here, and read as golden-format.md says ("From media").

    sound(seconds, seed) / bursts(seconds, seed)   int16 samples at 16 kHz
    film(n, w, h, seed)                             frames [n, h, w, 3] uint8
    write_wav / write_flac / write_png / write_video
    read_sound(path)     f32 mono at 16 kHz
    read_image(path)     PIL RGB image, alpha on white
    read_frames(path)    (frames [n, h, w, 3] uint8, average rate)
    smart_resize, frame_indices, resize_frames      the reference loader's rules
"""
import math
from fractions import Fraction

import av
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

RATE = 16000

# ---------------------------------------------------------------- made


def sound(n, seed, level=2500):
    """n samples: a few gliding tones under syllable-like envelopes, over faint noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(n) / RATE
    x = np.zeros(n)
    for _ in range(4):
        f, glide = rng.uniform(150, 3200), rng.uniform(-300, 300)
        beat = np.clip(np.sin(2 * np.pi * rng.uniform(1.5, 5) * t + rng.uniform(0, 6)), 0, 1)
        x += rng.uniform(0.2, 1) * beat * np.sin(2 * np.pi * (f * t + glide * t * t / 2))
    x = level * x / 2 + rng.normal(0, 12, n)
    return np.clip(np.round(x), -32768, 32767).astype(np.int16)


def bursts(n, seed):
    """n samples of digital silence with a short sound every few seconds: long, and small as FLAC."""
    rng = np.random.default_rng(seed)
    x, at = np.zeros(n, np.int16), 0
    while at < n:
        k = min(int(rng.uniform(0.12, 0.35) * RATE), n - at)
        x[at:at + k] = sound(k, int(rng.integers(1 << 30)), 600)
        at += k + int(rng.uniform(1.5, 4.0) * RATE)
    return x


def film(n, w, h, seed):
    """n frames: a tiled ground of 28-pixel fields, two boxes that move, one field that blinks."""
    rng = np.random.default_rng(seed)
    ground = np.zeros((h, w, 3), np.uint8)
    for y in range(0, h, 14):
        for x in range(0, w, 14):
            ground[y:y + 14, x:x + 14] = rng.integers(0, 256, 3)
    boxes = [(rng.integers(0, 256, 3), rng.uniform(0, w - 12), rng.uniform(0, h - 12), rng.uniform(-1.6, 1.6),
              rng.uniform(-1.6, 1.6), int(rng.integers(9, 20))) for _ in range(2)]
    out = np.repeat(ground[None], n, 0)
    for i in range(n):
        for colour, x, y, dx, dy, size in boxes:
            bx, by = int(abs((x + dx * i) % (2 * w) - w)), int(abs((y + dy * i) % (2 * h) - h))
            out[i, by:by + size, bx:bx + size] = colour
        out[i, :14, -14:] = (i * 37 % 256, i * 11 % 256, 255 - i * 5 % 256)
    return out


def write_png(path, picture, mode="RGB"):
    Image.fromarray(picture, mode).save(path, optimize=True)


def write_sound(path, samples, codec, rate=RATE):
    """int16 [n] or [n, channels] -> WAV or FLAC by the path's suffix."""
    write_video(path, None, None, samples, codec, rate)


def write_video(path, frames, rate, samples=None, codec="pcm_s16le", sample_rate=RATE, vcodec="libx264rgb",
                pix="rgb24", options=None):
    """frames [n, h, w, 3] at `rate` (a Fraction), samples int16 [n] or [n, channels]; lossless by default."""
    exact = {"fflags": "+bitexact"} if path.endswith(".mkv") else {}  # no random ids in the file
    with av.open(path, "w", options=exact) as out:
        if frames is not None:
            v = out.add_stream(vcodec, rate=rate)
            v.width, v.height, v.pix_fmt = frames.shape[2], frames.shape[1], pix
            v.thread_count = 1
            v.options = {"qp": "0", "preset": "veryslow", "g": "250"} if options is None else options
        if samples is not None:
            if samples.ndim == 1:
                samples = samples[:, None]
            a = out.add_stream(codec, rate=sample_rate)
            a.layout = {1: "mono", 2: "stereo"}[samples.shape[1]]
            a.format = "s16"
        if frames is not None:
            for i, x in enumerate(frames):
                f = av.VideoFrame.from_ndarray(np.ascontiguousarray(x), format="rgb24")
                f.pts, f.time_base = i, 1 / Fraction(rate)
                out.mux(v.encode(f))
            out.mux(v.encode(None))
        if samples is not None:
            for at in range(0, len(samples), 4096):
                f = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(samples[at:at + 4096]).reshape(1, -1), format="s16",
                    layout=a.layout.name)
                f.sample_rate, f.pts, f.time_base = sample_rate, at, Fraction(1, sample_rate)
                out.mux(a.encode(f))
            out.mux(a.encode(None))


# ---------------------------------------------------------------- read


def read_sound(path):
    """The first sound stream as f32 mono at 16 kHz: channels averaged, then libswresample if it must."""
    parts, rate = [], None
    with av.open(path) as f:
        to_float = av.AudioResampler(format="fltp")
        for frame in f.decode(audio=0):
            rate = frame.sample_rate
            frame.pts = None
            for g in to_float.resample(frame):
                parts.append(g.to_ndarray().astype(np.float32))
    x = np.concatenate(parts, axis=1)
    x = x.mean(axis=0, dtype=np.float32) if x.shape[0] > 1 else x[0]
    if rate == RATE:
        return x
    change = av.AudioResampler(format="fltp", layout="mono", rate=RATE)
    g = av.AudioFrame.from_ndarray(np.ascontiguousarray(x)[None], format="fltp", layout="mono")
    g.sample_rate, g.pts, g.time_base = rate, 0, Fraction(1, rate)
    return np.concatenate([p.to_ndarray()[0] for p in change.resample(g) + change.resample(None)])


def read_image(path):
    image = Image.open(path)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.split()[3])
        return white
    return image.convert("RGB")


def read_frames(path):
    with av.open(path) as f:
        stream = f.streams.video[0]
        rate = stream.average_rate
        frames = [x.to_ndarray(format="rgb24") for x in f.decode(video=0)]
    return np.stack(frames), float(rate)


def smart_resize(h, w, low, high):
    hb, wb = max(28, 28 * round(h / 28)), max(28, 28 * round(w / 28))
    if hb * wb > high:
        beta = math.sqrt(h * w / high)
        hb, wb = 28 * math.floor(h / beta / 28), 28 * math.floor(w / beta / 28)
    elif hb * wb < low:
        beta = math.sqrt(low / (h * w))
        hb, wb = 28 * math.ceil(h * beta / 28), 28 * math.ceil(w * beta / 28)
    return hb, wb


def frame_indices(total, rate, fps):
    """Which frames the loader takes: an even number, first and last among them."""
    low, high = 4, min(768, total) // 2 * 2
    n = min(min(max(total / rate * fps, low), high), total)
    n = int(n // 2) * 2
    if not 2 <= n <= total:
        raise ValueError(f"{total} frames at {rate}: {n} cannot be taken")
    return [round(Fraction(i * (total - 1), n - 1)) for i in range(n)]


def resize_frames(frames, low, high):
    """frames [n, h, w, 3] uint8 -> [n, 3, h', w'] float of whole numbers."""
    n, h, w, _ = frames.shape
    most = max(min(high, 128000 * 784 * 0.9 / n * 2), int(1.05 * low))
    size = smart_resize(h, w, low, min(high, most))
    x = torch.from_numpy(frames).permute(0, 3, 1, 2)
    return TF.resize(x, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True).float()
