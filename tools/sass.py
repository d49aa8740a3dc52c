#!/usr/bin/env python3
"""Counts instructions in the machine code of CUDA kernels: sass.py FILE.cubin...

A cubin is an ELF file whose sections .text.KERNEL hold instructions of 16 bytes; the low 12 bits of each are the opcode. No
disassembler is needed. Prints a line for each kernel: file, kernel, and of each kind below how many; no line of a kernel's
code is left out silently: `all` counts them. The opcodes were learned from kernels of one instruction compiled by nvcc 13.

registers: what a thread begins with. waits: for products of warpgroups; more than the source has means that the assembler runs the
products one by one. beside: exponentials between a wait that leaves products running and the next that does not. loop: instructions
of the loop in which matrix instructions are densest, from the branch's target to the branch, and what is in it (sm_90; other GPUs have
branches in another form).
"""
import collections
import struct
import sys

KINDS = {0x23C: "hmma", 0x9F0: "hgmma", 0xDF0: "hgmma", 0x83B: "ldmatrix", 0xFAE: "cp.async", 0x983: "local", 0x387: "local"}
KINDS.update({0x3BA: "bulk", 0x308: "mufu"})
SHOWN = ("all", "hmma", "hgmma", "ldmatrix", "cp.async", "local", "bulk", "mufu")
BRANCH, EXIT, GROUP, REGISTERS = 0x947, 0x94D, 0x9C5, 0x2F


def sections(data):
    """Name and bytes of each section of an ELF64 file."""
    if data[:4] != b"\x7fELF" or data[4] != 2:
        raise ValueError("not an ELF64 file")
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
    for h in headers:
        start = headers[names][4] + h[0]
        yield data[start : data.index(b"\0", start)].decode(), data[h[4] : h[4] + h[5]]


def registers(parts):
    """Registers of each kernel: .nv.info has entries (format, attribute, size) and with REGCOUNT the symbol and the number."""
    info, symbols, names = parts.get(".nv.info", b""), parts[".symtab"], parts[".strtab"]
    out, at = {}, 0
    while at + 4 <= len(info):
        kind, attribute, size = struct.unpack_from("<BBH", info, at)
        if attribute == REGISTERS:
            symbol, count = struct.unpack_from("<II", info, at + 4)
            (start,) = struct.unpack_from("<I", symbols, symbol * 24)
            out[names[start : names.index(b"\0", start)].decode()] = count
        at += 4 + (size if kind == 4 else 0)
    return out


def beside(code):
    """Waits for products, and the most exponentials between one that leaves some running and one that does not."""
    waits, most, count = 0, 0, None
    for low, high in code:
        if low & 0xFFF == 0x308 and count is not None:
            count += 1
        elif low & 0xFFF == GROUP and low >> 32 == 0x8000:
            waits += 1
            most, count = (most, 0) if high >> 8 & 0xFF else (max(most, count or 0), None)
    return waits, most


def loop(code):
    """The loop densest in matrix instructions: its length and the kinds in it."""
    best, count = 0, collections.Counter()
    for i, (low, high) in enumerate(code):
        if low & 0xFFF != BRANCH:
            continue
        words = low >> 16 & 0xFF | (low >> 34 | (high & 0x3FFFF) << 30) << 8   # of 4 bytes, 56 bits with a sign
        first = i + 1 + (words - (words >> 55 << 56)) // 4
        if not 0 <= first <= i or any(x & 0xFFF == EXIT for x, _ in code[first:i]):   # waits lie out of line, behind the exit
            continue
        kinds = collections.Counter(KINDS.get(x & 0xFFF) for x, _ in code[first : i + 1])
        density = (kinds["hmma"] + kinds["hgmma"]) / (i + 1 - first)
        if density > best:
            best, count = density, kinds
            count["all"] = i + 1 - first
    return count


def main():
    for path in sys.argv[1:]:
        with open(path, "rb") as f:
            parts = dict(sections(f.read()))
        used = registers(parts)
        for name, text in parts.items():
            if not name.startswith(".text."):
                continue
            code = list(struct.iter_unpack("<QQ", text))
            count = collections.Counter(KINDS.get(low & 0xFFF) for low, _ in code)
            count["all"] = len(code)
            waits, most = beside(code)
            inner = loop(code)
            print(path, name[6:], *(f"{k}={count[k]}" for k in SHOWN), f"registers={used.get(name[6:], 0)}", f"waits={waits}",
                  f"beside={most}", *(f"loop.{k}={inner[k]}" for k in ("all", "hmma", "hgmma", "ldmatrix", "mufu")))


if __name__ == "__main__":
    main()
