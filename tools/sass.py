#!/usr/bin/env python3
"""Counts instructions in the machine code of CUDA kernels: sass.py FILE.cubin...

A cubin is an ELF file whose sections .text.KERNEL hold instructions of 16 bytes; the low 12 bits of each are the opcode. No
disassembler is needed. Prints a line for each kernel: file, kernel, and of each kind below how many; no line of a kernel's
code is left out silently: `all` counts them. The opcodes were learned from kernels of one instruction compiled by nvcc 13.
"""
import collections
import struct
import sys

KINDS = {0x23C: "hmma", 0x9F0: "hgmma", 0xDF0: "hgmma", 0x83B: "ldmatrix", 0xFAE: "cp.async", 0x983: "local", 0x387: "local"}


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


def main():
    for path in sys.argv[1:]:
        with open(path, "rb") as f:
            data = f.read()
        for name, code in sections(data):
            if not name.startswith(".text."):
                continue
            count = collections.Counter()
            for i in range(0, len(code) - 15, 16):
                (low,) = struct.unpack_from("<Q", code, i)
                count["all"] += 1
                if low & 0xFFF in KINDS:
                    count[KINDS[low & 0xFFF]] += 1
            print(path, name[6:], *(f"{k}={count[k]}" for k in ("all", "hmma", "hgmma", "ldmatrix", "cp.async", "local")))


if __name__ == "__main__":
    main()
