#!/usr/bin/env python3
"""Put the rows of build/bench.json into the table of docs/measurements/cpu-bench.md.

usage: tools/bench_table.py [build/bench.json [docs/measurements/cpu-bench.md]]

Run it on the machine that was measured, right after `make bench`: date, processor, kernel and compiler are asked for
here. Only what stands between the two marks of the page is replaced.
"""
import datetime
import json
import platform
import subprocess
import sys

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"


def first_line(command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def processor():
    model, flags = "unknown", []
    with open("/proc/cpuinfo") as f:
        for line in f:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = value.split()
    sets = [s for s in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16") if s in flags]
    return f"{model} ({', '.join(sets)})"


def number(v):
    return f"{v:.3f}" if abs(v) < 10 else f"{v:.1f}" if abs(v) < 1000 else f"{v:.0f}"


def table(rows):
    commit = first_line(["git", "rev-parse", "--short", "HEAD"])
    threads = rows[0]["command"].split("--threads ")[1].split()[0]
    out = [f"{datetime.date.today().isoformat()}, commit {commit}: {processor()}, {threads} threads, "
           f"{platform.system()} {platform.release()}, {first_line(['gcc', '--version'])}.", "",
           "| row | value | bound | share | target | |", "|---|---|---|---|---|---|"]
    for r in rows:
        measure = r["floor"] == r["value"] and r["share"] == 1
        target = "" if measure else f"{r.get('target', 1):.2f}"
        bound = "" if measure else f"{number(r['floor'])} {r['unit']}"
        share = "" if measure else f"{r['share']:.3f}"
        out.append(f"| `{r['name']}` | {number(r['value'])} {r['unit']} | {bound} | {share} | {target} | {r['note']} |")
    return "\n".join(out)


def main():
    source = sys.argv[1] if len(sys.argv) > 1 else "build/bench.json"
    page = sys.argv[2] if len(sys.argv) > 2 else "docs/measurements/cpu-bench.md"
    with open(source) as f:
        rows = json.load(f)
    with open(page) as f:
        text = f.read()
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        sys.exit(f"{page}: no {BEGIN} ... {END} to put the table between")
    with open(page, "w") as f:
        f.write(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}")


if __name__ == "__main__":
    main()
