#!/usr/bin/env python3
"""make_tokenizer_cases.py - strings and the token ids that the `tokenizers` package gives them.

    make_tokenizer_cases.py [--model models/omni-tiny/tokenizer.json] [--out tests/data/tokenizer]

Writes OUT/multi.json, a byte-level BPE of 2000 merges over many scripts, and one file of cases for it
and for --model: OUT/multi.bin.gz and OUT/omni-tiny.bin.gz.

File format, gzip around it, little endian:
    8 bytes  "ODTOK1\\0\\0"
    u32      number of cases
    then, case by case:
    u32      n_bytes
    bytes    the text, UTF-8 or broken UTF-8, NUL bytes included, no terminator
    u32      n_ids
    u16[]    the ids

What is expected: the bytes read as UTF-8 with every maximal broken part replaced by U+FFFD (Python's
errors="replace"), then encoded as ordinary text. Added tokens are never matched: the text is a user's.

Pieces show only through merges that would cross them. So multi.json is trained until a space merges with
the lead byte of every script, and one part of the cases is a sweep: each assigned character once between a
space and "'s". A letter takes the space and leaves the "'s" whole, a number leaves both, a sign or a mark
takes the space and breaks the "'s", a white space does neither.

Left out: the composition of U+11938, which is younger than the package's normaliser knows.
"""
import argparse
import gzip
import json
import os
import random
import struct
import unicodedata

from tokenizers import Tokenizer

from goldens import corpus
import make_checkpoint

SPACES = [
    " ", "  ", "   ", "\t", "\n", "\r", "\r\n", "\n\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x1f", "\x85",
    "\xa0", "\u1680", "\u180e", "\u2000", "\u2003", "\u2009", "\u200a", "\u200b", "\u2028", "\u2029",
    "\u202f", "\u205f", "\u2060", "\u3000", "\ufeff"
]
SMALL = [
    "'s", "'S", "'\u017f", "'t", "'T", "'re", "'RE", "'rE", "'ve", "'Ve", "'VE", "'m", "'M", "'ll", "'LL",
    "'lL", "'d", "'D", "\u2019s", "\u2019ll", "''s", "'s's", "'sm", "'rex", "'\u212a", "'\ufb06", "'l", "'r",
    "'v", "'"
]
NUMBERS = "0123456789\u0660\u0669\u06f5\u07c3\u096a\u09ea\u0be7\u0e52\u0f23\u1042\u17e4\u1811\uff17" \
          "\U0001d7d8\U0001d7ff\u00bd\u00b2\u00b9\u2074\u2167\u216f" \
          "\u2460\u24ea\u3007\u32bf\u4e00\u5341\U00010107\U0001f10b"
SIGNS = list("!\"#$%&()*+,-./:;<=>?@[\\]^_`{|}~") + [
    "...", "--", "=>", "//", "«", "»", "“", "”", "…", "—", "·", "€", "§", "°", "©", "™", "→", "≤", "∑", "¿",
    "¡", "。", "、", "「", "」", "।"
]
EMOJI = [
    "🙂", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷", "🇯🇵🇺", "❤️", "❤", "☠︎", "1️⃣", "#️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "👨🏿‍🚀", "🧑‍⚕️", "✅",
    "⚠️", "🫠", "\u200d", "\ufe0f", "\U0001f3fb", "\U0001f1e6"
]
ODD = [
    "\x00", "\x01", "\x07", "\x1b[0m", "\x7f", "\x80", "\x9f", "\xad", "\ufffd", "\uffff", "\ufffe",
    "\U0010ffff", "\ue000", "\U000f0000", "\u202e", "\u2066", "\ufff9", "\u115f", "\u3164"
]
MARKS = "\u0300\u0301\u0308\u030a\u0323\u0327\u0328\u0345\u05b4\u05bc\u064b\u0651" \
        "\u093c\u094d\u0e38\u0f71\u1dce\u20d7\u3099\u309a"
BASES = "aAeoOuycsSnz\u00e5\u1ea1\u0391\u03c9" \
        "\u0418\u05e9\u0627\u0915\u0e01\u304b\u30cf\u1100\u1161\u11a8\uac00"
BROKEN = [
    b"\x80", b"\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xc3", b"\xe2\x82", b"\xe2", b"\xf0\x9f\x99", b"\xf0\x9f",
    b"\xf0", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", b"\xfe\xff",
    b"\xe0\x80\x80", b"\xe0\x9f\xbf", b"\xf0\x80\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xef\xbb\xbf",
    b"\xe2\x28\xa1", b"\xc3\x28", b"\xed\xa0\xbd\xed\xb8\x80"
]


def assigned():
    """Every assigned code point but the bulk of Han, Hangul and private use, of which every 61st."""
    out = []
    for c in range(0x20, 0x110000):
        kind = unicodedata.category(chr(c))
        if kind in ("Cn", "Cs"):
            continue
        bulk = kind == "Co" or 0x3400 <= c < 0xa000 or 0xac00 <= c < 0xd7a4 or c >= 0x17000
        if not bulk or c % 61 == 0 or 0x1f000 <= c < 0x1fb00 or 0x1d7c0 <= c < 0x1d800:
            out.append(c)
    return out


def letters_of_all_scripts(rng):
    """Lines that make a space merge with every lead byte, and letters with their neighbours."""
    pool = {}
    for c in assigned():
        if unicodedata.category(chr(c))[0] == "L":
            pool.setdefault(chr(c).encode()[:1], []).append(chr(c))
    out = []
    for lead, some in sorted(pool.items()):
        for _ in range(40):
            out.append("".join(" " + "".join(rng.choices(some, k=rng.randint(1, 3))) for _ in range(6)))
    return out


def train_multi(path):
    rng = random.Random(11)
    extra = letters_of_all_scripts(rng)
    extra += [" it's" * 3 + " she's" + " 's" * 2 + " they'll 'll we're I've I'm he'd don't"] * 60
    tok = make_checkpoint.train_tokenizer(2000, seed=2, n_lines=1500, more=extra)
    tok.save(path, pretty=False)


def pieces(rng):
    """One random run of text of one kind."""
    kind = rng.randrange(12)
    if kind == 0:
        return "".join(rng.choices(SPACES, k=rng.randint(1, 4)))
    if kind == 1:
        return rng.choice(["it", "she", "I", "WE", "они", "été", "x1", "", " "]) + rng.choice(SMALL)
    if kind == 2:
        return "".join(rng.choices(NUMBERS, k=rng.randint(1, 5)))
    if kind == 3:
        return "".join(rng.choices(SIGNS, k=rng.randint(1, 3)))
    if kind == 4:
        return "".join(rng.choices(EMOJI, k=rng.randint(1, 2)))
    if kind == 5:
        return rng.choice(ODD)
    if kind == 6:
        return "".join(
            rng.choice(BASES) + "".join(rng.choices(MARKS, k=rng.randint(0, 3)))
            for _ in range(rng.randint(1, 3)))
    if kind == 7:
        return rng.choice(make_checkpoint.ADDED)
    words = rng.choice(corpus.SENTENCES).split(" ")
    at = rng.randrange(len(words))
    return rng.choice(["", " "]) + " ".join(words[at:at + rng.randint(1, 3)])[:24]


def texts(sweep_step):
    """The cases as bytes. sweep_step: every how many of the sweep's strings are taken."""
    rng = random.Random(2026)
    out = [b""]
    put = lambda s: out.append(s if isinstance(s, bytes) else s.encode())
    for s in corpus.SENTENCES:
        put(s)
        put(unicodedata.normalize("NFD", s))
    for s in SPACES + SMALL + SIGNS + EMOJI + ODD + list(NUMBERS) + BROKEN + make_checkpoint.ADDED:
        put(s)
    for a in SPACES:  # every pair of spaces, before and after text
        for b in SPACES:
            put(f"s{a}{b}is{b}{a}")
    for a in SMALL:
        for b in ["it", "it ", "1", "!", "\n", "é"]:
            put(b + a + "is")
    everything = assigned()
    for i in range(0, len(everything), 12 * sweep_step):
        put("".join(f" {chr(c)}'s" for c in everything[i:i + 12]))
    split = [c for c in everything if c != 0x11938 and unicodedata.decomposition(chr(c))[:1] not in ("", "<")]
    for i in range(0, len(split), 10):  # NFC: composed, decomposed, out of order
        some = "".join(chr(c) for c in split[i:i + 10])
        put(some)
        put(unicodedata.normalize("NFD", some))
    for _ in range(300):
        put("".join(rng.choice(BASES) + "".join(rng.choices(MARKS, k=rng.randint(1, 5))) for _ in range(3)))
    for c in rng.sample(range(0xac00, 0xd7a4), 200):
        put(unicodedata.normalize("NFD", chr(c)) + rng.choice(["", "\u11a8", "\u1161", "가"]))
    for _ in range(900):  # broken UTF-8
        parts = [
            rng.choice(BROKEN) if rng.random() < 0.5 else pieces(rng).encode()[:rng.randint(1, 9)]
            for _ in range(rng.randint(1, 4))
        ]
        put(b"".join(parts))
    for _ in range(200):
        put(rng.randbytes(rng.randint(1, 16)))
    for a in make_checkpoint.ADDED:  # what looks like a special token is text
        for b in (f"say {a} now", f"{a}{a}", f"x{a}\n", a[:-1], a.replace("|",
                                                                          "||"), f"<|im_end|>\n{a}user\n"):
            put(b)
    for s in ("a" * 1000, " " * 500, " " * 300 + "x", "\n" * 200, "is" * 400, "'s" * 150, "1" * 100,
              "é" * 200, "e\u0301" * 100, "a" + "\u0301" * 60, "🙂" * 50, "!" * 300, "\r\n" * 60, "\x00" * 20,
              "가" * 60, "\u1100\u1161\u11a8" * 30):
        put(s)
    while len(out) < 10500:
        put("".join(pieces(rng) for _ in range(rng.randint(1, 3))))
    return out


def plain(path):
    """The tokenizer without its added tokens."""
    with open(path, encoding="utf-8") as f:
        data = json.load(f)
    data["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(data))


def write(path, tok, cases):
    with open(path, "wb") as packed, gzip.GzipFile("", "wb", 9, packed, 0) as f:
        f.write(b"ODTOK1\0\0" + struct.pack("<I", len(cases)))
        for raw in cases:
            ids = tok.encode(raw.decode("utf-8", errors="replace"), add_special_tokens=False).ids
            f.write(struct.pack("<I", len(raw)) + raw + struct.pack(f"<I{len(ids)}H", len(ids), *ids))
    print(f"{path}: {len(cases)} cases, {os.path.getsize(path)} bytes")


def main():
    here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
    a = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    a.add_argument("--model", default=os.path.join(here, "models/omni-tiny/tokenizer.json"))
    a.add_argument("--out", default=os.path.join(here, "tests/data/tokenizer"))
    a = a.parse_args()
    os.makedirs(a.out, exist_ok=True)
    multi = os.path.join(a.out, "multi.json")
    train_multi(multi)
    write(os.path.join(a.out, "multi.bin.gz"), plain(multi), texts(1))
    write(os.path.join(a.out, "omni-tiny.bin.gz"), plain(a.model), texts(3))


if __name__ == "__main__":
    main()
