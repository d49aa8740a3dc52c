#!/usr/bin/env python3
"""Writes model/unicode_tables.h: where the `tokenizers` package and the C libraries see Unicode differently.

tokenizers splits with Oniguruma (one Unicode version) and normalises with a Rust crate (an older one);
the engine uses libpcre2-8 and libutf8proc (two others). Both sides are asked about every code point:

* classes: a code point whose general category or white space differs is replaced, for matching alone, by one
  of the same UTF-8 length that libpcre2 puts where Oniguruma puts the original;
* normalisation: a code point that the crate takes for an inert starter and libutf8proc (or a later Unicode)
  for one that moves or composes is kept out of libutf8proc's sight.

Run: make_unicode_tables.py > model/unicode_tables.h   (tokenizers 0.23, libpcre2-8.so.0, libutf8proc.so.2)
"""
import ctypes
import sys

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

CATEGORIES = ("Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp "
              "Cc Cf Co Cn").split()
POINTS = [c for c in range(1, 0x110000) if not 0xD800 <= c < 0xE000]
pcre2 = ctypes.CDLL("libpcre2-8.so.0")
utf8proc = ctypes.CDLL("libutf8proc.so.2")
libc = ctypes.CDLL(None)


def oniguruma(pattern):
    """Code points that match: each stands twice, so that only single matches have length 1."""
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    found = set()
    for i in range(0, len(POINTS), 20000):
        text = "".join(chr(c) * 2 for c in POINTS[i:i + 20000])
        found.update(ord(text[a]) for _, (a, b) in split.pre_tokenize_str(text) if b - a == 1)
    return found


def pcre(pattern):
    utf, ucp, no_check = 0x00080000, 0x00020000, 0x40000000
    pcre2.pcre2_compile_8.restype = ctypes.c_void_p
    pcre2.pcre2_match_data_create_8.restype = ctypes.c_void_p
    pcre2.pcre2_get_ovector_pointer_8.restype = ctypes.POINTER(ctypes.c_size_t)
    number, where = ctypes.c_int(), ctypes.c_size_t()
    text = pattern.encode()
    code = ctypes.c_void_p(pcre2.pcre2_compile_8(text, ctypes.c_size_t(len(text)), ctypes.c_uint32(utf | ucp),
                                                 ctypes.byref(number), ctypes.byref(where), None))
    data = ctypes.c_void_p(pcre2.pcre2_match_data_create_8(4, None))
    span = pcre2.pcre2_get_ovector_pointer_8(data)
    subject = "".join(map(chr, POINTS)).encode()
    found, at = set(), 0
    while pcre2.pcre2_match_8(code, subject, ctypes.c_size_t(len(subject)), ctypes.c_size_t(at),
                              ctypes.c_uint32(no_check), data, None) > 0:
        found.add(ord(subject[span[0]:span[1]].decode()))
        at = span[1]
    return found


def utf8proc_nfc(text):
    utf8proc.utf8proc_NFC.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    p = utf8proc.utf8proc_NFC(text.encode())
    out = ctypes.string_at(p).decode()
    libc.free(p)
    return out


def ranges(pairs):
    """[(point, value)] -> [(first, last, value)]"""
    out = []
    for c, v in sorted(pairs):
        if out and out[-1][1] == c - 1 and out[-1][2] == v:
            out[-1][1] = c
        else:
            out.append([c, c, v])
    return out


def length(c):
    return len(chr(c).encode())


def main():
    want = {c: (k, False) for k in CATEGORIES for c in oniguruma(r"\p{%s}" % k)}
    for c in oniguruma(r"\s"):
        want[c] = (want[c][0], True)
    have = {c: (k, False) for k in CATEGORIES for c in pcre(r"\p{%s}" % k)}
    for c in pcre(r"\s"):
        have[c] = (have[c][0], True)
    stand_in = {}
    for c in POINTS:
        if have[c] == want[c]:
            stand_in.setdefault((want[c], length(c)), c)
    classes = [(c, stand_in[want[c], length(c)]) for c in POINTS if have[c] != want[c]]

    rust = normalizers.NFC().normalize_str
    inert = []
    for c in POINTS:
        new_mark = want[c][0] in ("Mn", "Mc", "Me") and have[c][0] == "Cn"
        tests = ["q\u0345" + chr(c), "q" + chr(c) + "\u0334", "\U00011935" + chr(c),
                 "\uac00" + chr(c), chr(c)]
        if new_mark or any(rust(t) != utf8proc_nfc(t) for t in tests):
            if any(rust(t) != t for t in tests):
                sys.exit("U+%04X is not inert for tokenizers: the engine has no rule for this" % c)
            inert.append((c, 0))

    utf8proc.utf8proc_unicode_version.restype = ctypes.c_char_p
    print("/* model/unicode_tables.h - where the `tokenizers` package and the C libraries see Unicode differently.\n"
          " * Made by tools/make_unicode_tables.py with tokenizers %s, libpcre2 10.42 and libutf8proc with\n"
          " * Unicode %s; not to be edited. */" % (tokenizers.__version__,
                                                  utf8proc.utf8proc_unicode_version().decode()))
    print("#ifndef MODEL_UNICODE_TABLES_H\n#define MODEL_UNICODE_TABLES_H\n\n#include <stdint.h>\n")
    print("/* For matching, code points first..last stand as stand_in: same length in UTF-8. */")
    print("static const struct { uint32_t first, last, stand_in; } unicode_classes[] = {")
    for first, last, value in ranges(classes):
        print("    { 0x%05X, 0x%05X, 0x%05X }," % (first, last, value))
    print("};\n\n/* Starters that neither move nor compose. */")
    print("static const struct { uint32_t first, last; } unicode_inert[] = {")
    for first, last, _ in ranges(inert):
        print("    { 0x%05X, 0x%05X }," % (first, last))
    print("};\n\n#endif")


main()
