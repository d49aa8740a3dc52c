"""Makes tests/data/media: small files of every kind that the media tests read, and expected.txt, what the reference
makes of them (PyAV, Pillow, torchvision, transformers; the loader's rules of qwen-omni-utils are written out here).

    python3 tools/make_media.py [media] [expected]        default: both

`media` needs the ffmpeg program, Pillow and NumPy; `expected` needs PyAV, torchvision and transformers as well and
works on whatever files are there, so the two can be made by different machines. Files are not bit-reproducible
between versions of the encoders: make both again if one is."""
import io
import math
import os
import struct
import subprocess
import sys
import zlib

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "tests", "data", "media")


def path(name):
    return os.path.join(OUT, name)


# ---- files -----------------------------------------------------------------------------------------------------

def ffmpeg(*args):
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-threads", "1", *args], check=True)


def film(name, *codec, size="96x72", rate="30", seconds=2.5, extra=()):
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=s={size}:r={rate}:d={seconds}", *extra, *codec, path(name))


def sound(name, *codec, rate=44100, channels=2, seconds=1.3, before=()):
    left = "0.3*sin(440*2*PI*t)+0.1*sin(1500*2*PI*t*t)"
    right = "0.25*sin(700*2*PI*t)*exp(-t)"
    expr = "|".join([left, right, "0.2*sin(90*2*PI*t)", "0.1", "0.1*sin(5000*2*PI*t)", "-0.2*t"][:channels])
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    ffmpeg(*before, "-f", "lavfi", "-i", f"aevalsrc={expr}:s={rate}:d={seconds}:c={layout}", *codec, path(name))


X264 = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p")


def patch(name, source, change):
    with open(path(source), "rb") as f:
        data = f.read()
    with open(path(name), "wb") as f:
        f.write(change(data))


def turned(data, matrix):
    """The display matrix of the first track header of an mp4."""
    at = data.index(b"tkhd") + 4
    at += 40 if data[at] == 0 else 52
    return data[:at] + struct.pack(">9i", *matrix) + data[at + 36:]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(w, h, depth, colour, rows, extra=b""):
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0)) + extra +
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + r for r in rows), 9)) + chunk(b"IEND", b""))


def scene(w, h, seed):
    y, x = np.mgrid[0:h, 0:w]
    a = np.stack([x * 255 // max(w - 1, 1), y * 255 // max(h - 1, 1), (x + y) * 3 % 256], -1).astype(np.uint8)
    a[h // 4:h // 2, w // 4:w // 2] = (255, 0, 0)
    noise = np.random.default_rng(seed).integers(0, 64, (h - h // 2, w - w // 2, 3), dtype=np.uint8)
    a[h // 2:, w // 2:] ^= noise
    return a


def make_pictures():
    from PIL import Image

    def save(name, array, **options):
        image = array if isinstance(array, Image.Image) else Image.fromarray(array)
        image.save(path(name), **options)

    s = scene(90, 61, 1)
    alpha = np.random.default_rng(2).integers(0, 256, (61, 90, 1), dtype=np.uint8)
    save("rgb.png", s)
    save("rgba.png", np.concatenate([s, alpha], -1))
    save("grey_alpha.png", Image.fromarray(np.concatenate([s, alpha], -1)).convert("LA"))
    save("palette.png", Image.fromarray(s).quantize(50))
    save("bits1.png", Image.fromarray(s).convert("1"))
    save("wide.png", scene(300, 20, 3))
    save("photo444.jpg", s, quality=85, subsampling=0)
    save("photo422.jpg", s, quality=85, subsampling=1)
    save("photo420.jpg", s, quality=85, subsampling=2, progressive=True)
    save("grey.jpg", Image.fromarray(s).convert("L"), quality=85)
    exif = Image.Exif()
    exif[0x0112] = 6
    save("exif_turned.jpg", s, quality=85, exif=exif)
    save("photo.webp", s, quality=80)
    save("alpha.webp", np.concatenate([s, alpha], -1), quality=80)
    save("still.gif", s)
    save("picture.bmp", s)
    g16 = struct.pack(">8H", 0, 100, 255, 256, 1000, 32768, 65000, 65535)
    raw = {
        "grey16.png": png(8, 1, 16, 0, [g16]),
        "grey4.png": png(4, 1, 4, 0, [bytes([0x01, 0x8F])]),
        "rgb16.png": png(2, 1, 16, 2, [struct.pack(">6H", 1000, 127, 40000, 65535, 255, 256)]),
        "rgba16.png": png(1, 1, 16, 6, [struct.pack(">4H", 1000, 127, 40000, 30000)]),
        "grey_alpha16.png": png(2, 1, 16, 4, [struct.pack(">4H", 1000, 0, 40000, 30000)]),
        "rgb_trns.png": png(2, 1, 8, 2, [bytes([1, 2, 3, 4, 5, 6])], chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))),
        "palette_trns.png": png(2, 1, 8, 3, [bytes([0, 1])], chunk(b"PLTE", bytes([9, 8, 7, 6, 5, 4])) +
                                chunk(b"tRNS", bytes([0, 128]))),
        "bad_thin.png": png(1, 300, 8, 0, [b"\x80"] * 300),
        "bad_bomb.png": png(16384, 16384, 1, 0, [bytes(2048)] * 16384),
    }
    for name, data in raw.items():
        with open(path(name), "wb") as f:
            f.write(data)
    patch("bad_half.png", "rgb.png", lambda d: d[:200])


def make_media():
    os.makedirs(OUT, exist_ok=True)
    make_pictures()

    film("film.mp4", *X264, "-bf", "3", "-c:a", "aac", "-b:a", "48k", "-shortest", "-movflags", "+faststart",
         extra=("-f", "lavfi", "-i", "aevalsrc=0.3*sin(440*2*PI*t)|0.2*sin(700*2*PI*t):s=44100:d=2.5"))
    film("exact.mov", "-c:v", "libx264rgb", "-preset", "veryfast", "-pix_fmt", "gbrp", size="84x56",
         rate="30000/1001", seconds=2.34)
    film("bt709.mp4", *X264, "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", seconds=1)
    film("full_range.mp4", "-c:v", "libx264", "-pix_fmt", "yuvj420p", "-color_range", "pc", seconds=1)
    film("ten_bit.mkv", "-c:v", "libx265", "-x265-params", "log-level=0", "-pix_fmt", "yuv420p10le", seconds=1)
    film("odd.mkv", "-vf", "format=yuv444p,crop=85:61", "-c:v", "libx264", "-pix_fmt", "yuv444p", seconds=1)
    film("open_gop.mp4", *X264, "-bf", "3", "-x264-params", "b-pyramid=2:open-gop=1:keyint=20", seconds=3)
    film("variable.mp4", "-vf", r"setpts=if(lt(N\,20)\,N/25/TB\,(20+(N-20)*3.7)/25/TB)", "-fps_mode", "vfr", *X264,
         rate="25", seconds=2)
    film("mpeg4.avi", "-c:v", "mpeg4", "-bf", "2", "-b:v", "150k", rate="25", seconds=1.5)
    film("mpeg2.ts", "-c:v", "mpeg2video", "-bf", "2", "-b:v", "150k", rate="25", seconds=1.5)
    film("altref.webm", "-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-b:v", "150k", rate="25",
         seconds=3)
    film("vp9.webm", "-c:v", "libvpx-vp9", "-b:v", "100k", rate="25", seconds=1.5)
    film("vp9_full.webm", "-c:v", "libvpx-vp9", "-b:v", "100k", "-color_range", "pc", rate="25", seconds=0.6)
    film("moving.gif", "-vf", "scale=48:36", rate="10", seconds=1)
    film("three.mp4", *X264, rate="1", seconds=3)
    film("one.mp4", *X264, rate="1", seconds=1)
    one = 65536
    for name, matrix in {
        "turned90.mp4": (0, one, 0, -one, 0, 0, 72 * one, 0, 1 << 30),
        "turned180.mp4": (-one, 0, 0, 0, -one, 0, 96 * one, 72 * one, 1 << 30),
        "turned270.mp4": (0, -one, 0, one, 0, 0, 0, 96 * one, 1 << 30),
        "mirrored.mp4": (-one, 0, 0, 0, one, 0, 96 * one, 0, 1 << 30),
        "mirrored90.mp4": (0, one, 0, one, 0, 0, 0, 0, 1 << 30),
    }.items():
        patch(name, "three.mp4", lambda d, m=matrix: turned(d, m))

    sound("stereo.wav", "-c:a", "pcm_s16le")
    sound("u8.wav", "-c:a", "pcm_u8", rate=22050, channels=1, seconds=0.4)
    sound("f64.wav", "-c:a", "pcm_f64le", rate=48000, channels=1, seconds=0.2)
    sound("s24.wav", "-c:a", "pcm_s24le", rate=32000, channels=1, seconds=0.4)
    sound("phone.wav", "-c:a", "pcm_alaw", rate=8000, channels=1)
    sound("mono16k.flac", "-c:a", "flac", rate=16000, channels=1)
    sound("sound.mp3", "-c:a", "libmp3lame", "-b:a", "48k")
    sound("sound.opus", "-c:a", "libopus", "-b:a", "32k", rate=48000)
    sound("surround.m4a", "-c:a", "aac", "-b:a", "96k", rate=48000, channels=6)
    sound("sound.ogg", "-c:a", "libvorbis", "-q:a", "1")
    # A tone that starts 1 s late, rests from 1.5 to 2.5 s of the file and goes on; under a film that starts at 0.
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=32x32:r=10:d=3", "-f", "lavfi", "-i",
           "aevalsrc=0.5:s=16000:d=1", "-af", r"asetpts=if(lt(T\,0.5)\,PTS+1/TB\,PTS+2/TB)", "-c:v", "libx264",
           "-c:a", "pcm_s16le", path("late.mkv"))
    # A film whose sound ends after 0.3 s of its 1 s.
    ffmpeg("-i", path("bt709.mp4"), "-t", "0.3", "-i", path("film.mp4"), "-map", "0:v", "-map", "1:a", "-c", "copy",
           path("short_sound.mp4"))
    ffmpeg("-i", path("sound.mp3"), "-i", path("rgb.png"), "-map", "0", "-map", "1", "-c", "copy", "-disposition:v",
           "attached_pic", path("cover.mp3"))

    with open(path("bad_text.mp4"), "w") as f:
        f.write("This is not a film, whatever its name says.\n" * 20)
    film("tmp.mp4", *X264, seconds=3)
    patch("bad_no_moov.mp4", "tmp.mp4", lambda d: d[:d.index(b"moov") - 200])
    ffmpeg("-i", path("film.mp4"), "-c", "copy", "-encryption_scheme", "cenc-aes-ctr", "-encryption_key",
           "76a6c65c5ea762046bd749a2e632ccbb", "-encryption_kid", "a7e61c373e219033c21091fa607bf3b8",
           path("bad_encrypted.mp4"))
    patch("bad_half.mp4", "film.mp4", lambda d: d[:len(d) * 6 // 10])
    patch("bad_codec.mp4", "three.mp4", lambda d: d.replace(b"avc1", b"zzz1"))
    ffmpeg("-i", path("tmp.mp4"), "-ss", "10", "-c", "copy", path("bad_no_tracks.mp4"))
    patch("bad_no_frames.mp4", "film.mp4", lambda d: d[:d.index(b"mdat") + 4])
    os.remove(path("tmp.mp4"))
    patch("bad_no_samples.wav", "u8.wav", lambda d: d[:d.index(b"data") + 4] + bytes(4))
    with open(path("bad_list.m3u8"), "w") as f:
        f.write("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:3,\nfilm.mp4\n#EXT-X-ENDLIST\n")
    with open(path("bad_list.ffconcat"), "w") as f:
        f.write("ffconcat version 1.0\nfile film.mp4\n")
    with open(path("bad_list.sdp"), "w") as f:
        f.write("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5000 RTP/AVP 96\n"
                "a=rtpmap:96 H264/90000\n")


# ---- the reference ---------------------------------------------------------------------------------------------

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def smart_resize(h, w, low, high, loader):
    """Loader: qwen-omni-utils. Processor: transformers' own function."""
    if not loader:
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as processor
        return processor(h, w, 28, low, high)
    if max(h, w) / min(h, w) > 200:
        raise ValueError("aspect ratio")
    hb, wb = max(28, round(h / 28) * 28), max(28, round(w / 28) * 28)
    if hb * wb > high:
        beta = math.sqrt(h * w / high)
        hb, wb = math.floor(h / beta / 28) * 28, math.floor(w / beta / 28) * 28
    elif hb * wb < low:
        beta = math.sqrt(low / (h * w))
        hb, wb = math.ceil(h * beta / 28) * 28, math.ceil(w * beta / 28) * 28
    return hb, wb


def plan(total, rate, h, w, fps, low, high):
    most = min(768, total) // 2 * 2
    n = min(min(max(total / rate * fps, 4), most), total)
    n = int(n // 2 * 2)
    if n < 2:
        raise ValueError("too short")
    index = [round(i * (total - 1) / (n - 1)) for i in range(n)]
    limit = min(high, max(min(602112, 90316800 / n * 2), int(low * 1.05)))
    lh, lw = smart_resize(h, w, low, limit, True)
    return n, index, lh, lw, *smart_resize(lh, lw, low, high, False)


def patches(frames):
    """[T, 3, H, W] of 0..255 -> [T/2 * H/14 * W/14, 1176]."""
    import torch
    v = (frames / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    t, c, h, w = v.shape
    v = v.reshape(t // 2, 2, c, h // 28, 2, 14, w // 28, 2, 14).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return v.reshape(-1, 1176).numpy()


def fnv(data):
    h = 0xCBF29CE484222325
    for b in bytes(data):
        h = (h ^ b) * 0x100000001B3 & (1 << 64) - 1
    return f"{h:016x}"


def some(array, n, seed):
    """n values of an array at fixed places: 'count index value ...'."""
    flat = np.asarray(array).reshape(-1)
    at = np.random.default_rng(seed).integers(0, flat.size, n)
    return f"{n} " + " ".join(f"{i} {flat[i]:.9g}" for i in at)


def noise(n, seed):
    """The tests' own generator: uniform f32 in [-0.5, 0.5), from the top 24 bits of an LCG."""
    a, c, m = 6364136223846793005, 1442695040888963407, 1 << 64
    out = np.empty(n, np.uint64)
    s = seed
    for i in range(n):
        s = (s * a + c) % m
        out[i] = s >> 40
    return out


def expect_mel(put):
    from transformers import WhisperFeatureExtractor
    extract = WhisperFeatureExtractor(feature_size=128, sampling_rate=16000, hop_length=160, chunk_length=300,
                                      n_fft=400)
    for n in (1, 100, 159, 160, 161, 320, 321, 480, 31840, 32160, 52800, 976000):
        x = (noise(n, n).astype(np.float32) / np.float32(1 << 24) - np.float32(0.5))
        x[n // 3:n // 2] *= np.float32(2.0 ** -12)                   # a quiet stretch: the floor is in force there
        length = -(-n // 160)
        y = extract(x, sampling_rate=16000, return_tensors="np")["input_features"][0][:, :length]
        put("mel", n, length, some(y, 150, n))


def expect_sizes(put):
    random = np.random.default_rng(5)
    sides = [1, 13, 14, 15, 27, 28, 41, 42, 43, 56, 61, 90, 112, 200, 240, 300, 360, 448, 480, 640, 720, 1080, 1280,
             1920, 4000, 6000, 8000]
    limits = [(3136, 12845056), (100352, 602112), (3136, 31360), (3136, 9408), (100352, 105369)]
    for _ in range(250):
        h, w = (int(random.choice(sides)) for _ in range(2))
        low, high = limits[int(random.integers(len(limits)))]
        for loader in (True, False):
            try:
                oh, ow = smart_resize(h, w, low, high, loader)
            except ValueError:
                oh = ow = 0
            if min(oh, ow) == 0 and max(h, w) / min(h, w) <= 200:
                continue                                             # the loader's own failure, not worth keeping
            put("size", int(loader), h, w, low, high, oh, ow)
    for total, rate, h, w, fps, low, high in [
            (180, 30.0, 360, 640, 2.0, 100352, 602112), (179, 30000 / 1001, 360, 640, 2.0, 100352, 602112),
            (30, 30.0, 720, 1280, 2.0, 100352, 602112), (45, 30.0, 1080, 1920, 2.0, 100352, 602112),
            (15, 30.0, 240, 320, 2.0, 100352, 602112), (132, 25.0, 480, 854, 2.0, 100352, 602112),
            (12000, 30.0, 1080, 1920, 2.0, 100352, 602112), (3, 1.0, 72, 96, 2.0, 3136, 31360),
            (108000, 30.0, 720, 1280, 2.0, 100352, 602112), (480, 30.0, 360, 640, 60.0, 100352, 602112),
            (1800, 30.0, 720, 1280, 0.1, 100352, 602112), (2, 25.0, 30, 5000, 2.0, 100352, 602112),
            (700000, 59.94, 1080, 1920, 1.0, 3136, 9408), (20000, 25.0, 720, 1280, 2.0, 300000, 602112)]:
        n, index, *sizes = plan(total, rate, h, w, fps, low, high)
        check = sum((i + 1) * x for i, x in enumerate(index)) % (1 << 61)
        put("plan", total, repr(rate), h, w, repr(fps), low, high, n, check, *sizes)


def expect_resize(put):
    import torch
    from PIL import Image
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tf
    random = np.random.default_rng(6)
    cases = [tuple(int(x) + 1 for x in np.exp(random.uniform(0, np.log(200), 4))) for _ in range(40)]
    cases += [(61, 90, 56, 84), (20, 300, 28, 308), (100, 100, 100, 28), (100, 100, 28, 100), (2, 2, 140, 140),
              (144, 256, 28, 56), (7, 7, 7, 7)]
    for h, w, oh, ow in cases:
        a = (noise(h * w * 3, h * 1000 + w) >> np.uint64(16)).astype(np.uint8).reshape(h, w, 3)
        a[::2, ::3] = np.where(a[::2, ::3] > 127, 255, 0)            # sharp edges: the sums leave 0..255
        image = np.asarray(Image.fromarray(a).resize((ow, oh), Image.BICUBIC))
        put("picture", h, w, oh, ow, fnv(image.tobytes()))
        t = torch.from_numpy(a).permute(2, 0, 1)[None]
        frame = tf.resize(t, [oh, ow], interpolation=InterpolationMode.BICUBIC, antialias=True)[0]
        again = tf.resize(t.float(), [oh, ow], interpolation=InterpolationMode.BICUBIC, antialias=True)[0]
        put("frame", h, w, oh, ow, int(frame.long().sum()), some(frame.permute(1, 2, 0), 40, h + w),
            some(again.permute(1, 2, 0), 40, h + w))


def expect_sound(put):
    import av
    for name in ("stereo.wav", "u8.wav", "f64.wav", "s24.wav", "phone.wav", "mono16k.flac", "sound.mp3", "sound.opus",
                 "surround.m4a", "sound.ogg", "film.mp4", "cover.mp3"):
        parts = []
        with av.open(path(name)) as c:
            for f in c.decode(audio=0):
                a, n, rate, kind = f.to_ndarray(), f.layout.nb_channels, f.sample_rate, f.format.name.rstrip("p")
                if not f.format.is_planar:
                    a = a.reshape(-1, n).T
                shift = {"u8": (128, 128), "s16": (0, 32768), "s32": (0, 2 ** 31), "flt": (0, 1), "dbl": (0, 1)}[kind]
                a = ((a.astype(np.float64) - shift[0]) / shift[1]).astype(np.float32)
                parts.append(a.mean(0, dtype=np.float32))
        x = np.concatenate(parts)
        if rate != 16000:
            resampler, parts = av.AudioResampler(format="fltp", layout="mono", rate=16000), []
            f = av.AudioFrame.from_ndarray(x[None], format="fltp", layout="mono")
            f.sample_rate = rate
            for item in (f, None):
                parts += [y.to_ndarray()[0] for y in resampler.resample(item)]
            x = np.concatenate(parts)
        put("sound", name, x.size, some(x, 60, x.size))


def expect_film(put):
    import av
    import torch
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as tf
    turn = {"turned90.mp4": lambda f: np.rot90(f, -1, (1, 2)), "turned180.mp4": lambda f: np.rot90(f, 2, (1, 2)),
            "turned270.mp4": lambda f: np.rot90(f, 1, (1, 2)), "mirrored.mp4": lambda f: f[:, :, ::-1],
            "mirrored90.mp4": lambda f: f.transpose(0, 2, 1, 3)}
    for name, fps, low, high in [
            ("film.mp4", 2.0, 3136, 31360), ("film.mp4", 24.0, 3136, 31360), ("exact.mov", 2.0, 3136, 31360),
            ("bt709.mp4", 2.0, 3136, 9408), ("full_range.mp4", 2.0, 3136, 9408), ("ten_bit.mkv", 4.0, 3136, 9408),
            ("odd.mkv", 2.0, 3136, 9408), ("open_gop.mp4", 3.0, 3136, 9408), ("variable.mp4", 2.0, 3136, 9408),
            ("mpeg4.avi", 3.0, 3136, 9408), ("mpeg2.ts", 3.0, 3136, 9408), ("altref.webm", 3.0, 3136, 9408),
            ("vp9.webm", 3.0, 3136, 9408), ("vp9_full.webm", 3.0, 3136, 9408),
            ("moving.gif", 2.0, 3136, 9408), ("three.mp4", 2.0, 3136, 9408),
            ("turned90.mp4", 2.0, 3136, 9408), ("turned180.mp4", 2.0, 3136, 9408), ("turned270.mp4", 2.0, 3136, 9408),
            ("mirrored.mp4", 2.0, 3136, 9408), ("mirrored90.mp4", 2.0, 3136, 9408)]:
        with av.open(path(name)) as c:
            s = c.streams.video[0]
            rate = float(s.average_rate)
            frames = np.stack([f.to_ndarray(format="rgb24") for f in c.decode(s)])
        frames = np.ascontiguousarray(turn.get(name, lambda f: f)(frames))
        total, h, w = frames.shape[:3]
        n, index, lh, lw, ph, pw = plan(total, rate, h, w, fps, low, high)
        t = torch.from_numpy(frames[index]).permute(0, 3, 1, 2)
        t = tf.resize(t, [lh, lw], interpolation=InterpolationMode.BICUBIC, antialias=True).float()
        if (ph, pw) != (lh, lw):
            t = tf.resize(t, [ph, pw], interpolation=InterpolationMode.BICUBIC, antialias=True)
        put("film", name, repr(fps), low, high, total, n // 2, ph // 14, pw // 14, some(patches(t), 120, total))


def expect_picture(put):
    import torch
    from PIL import Image
    for name in ("rgb.png", "rgba.png", "grey_alpha.png", "palette.png", "bits1.png", "wide.png", "photo444.jpg",
                 "photo422.jpg", "photo420.jpg", "grey.jpg", "exif_turned.jpg", "photo.webp", "alpha.webp",
                 "still.gif", "picture.bmp", "grey16.png", "grey4.png", "rgb16.png", "rgba16.png", "grey_alpha16.png",
                 "rgb_trns.png", "palette_trns.png"):
        with open(path(name), "rb") as f:
            image = Image.open(io.BytesIO(f.read()))
        if image.mode == "RGBA":
            white = Image.new("RGB", image.size, (255, 255, 255))
            white.paste(image, mask=image.split()[3])
            image = white
        image = image.convert("RGB")
        a = np.asarray(image)
        put("rgb", name, a.shape[0], a.shape[1], fnv(a.tobytes()), some(a, 60, a.size))
        h, w = smart_resize(*a.shape[:2], 3136, 12845056, True)
        t = torch.from_numpy(np.asarray(image.resize((w, h), Image.BICUBIC)).copy()).permute(2, 0, 1)[None].float()
        put("image", name, h // 14, w // 14, some(patches(torch.cat([t, t])), 60, a.size))


def make_expected():
    import av
    import PIL
    import torch
    import torchvision
    import transformers
    lines = [f"# tools/make_media.py: PyAV {av.__version__}, Pillow {PIL.__version__}, torch {torch.__version__}, "
             f"torchvision {torchvision.__version__}, transformers {transformers.__version__}"]

    def put(*words):
        lines.append(" ".join(str(w) for w in words))

    for make in (expect_mel, expect_sizes, expect_resize, expect_sound, expect_film, expect_picture):
        make(put)
    with open(path("expected.txt"), "w") as f:
        f.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    what = sys.argv[1:] or ["media", "expected"]
    if "media" in what:
        make_media()
    if "expected" in what:
        make_expected()
