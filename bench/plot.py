#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Draws what layer_bench measured.

    python3 bench/plot.py build/bench/results/layer_bench.json [--shape olmoe] [--out folder] [--png]

roofline-SHAPE   FLOP/s against rows per expert, a dot for each number of tokens, and a line for what
                 the machine could do: its peak, or as much as it can read weights for
tokens-SHAPE     tokens per second against tokens in a call, next to the same layer around other
                 libraries
threads-SHAPE    speed against one thread, and the ideal line

All variants in the file are drawn; what was not measured is left out. Pictures are SVG, written next
to the JSON file.
"""
import argparse
import json
import pathlib
import re
import sys

try:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
except ImportError:
    sys.exit("plot.py needs matplotlib: apt-get install python3-matplotlib, or pip install matplotlib")

# Of the variants, in the order in which the file has them.
COLOURS = ["tab:blue", "tab:orange", "tab:green", "tab:red", "tab:brown", "tab:olive", "tab:cyan", "black",
           "gold", "navy", "teal", "darkred"]
MARKS = "osv^<>DPX*hd"
# vs_naive is the same layer for all variants.
PEERS = [("fp32", "vs_naive", "Eigen loop, fp32", "0.6"), ("fp32", "vs_openblas", "OpenBLAS, fp32", "0.45"),
         ("fp32", "vs_onednn", "oneDNN, fp32", "tab:purple"),
         ("bf16_bf16", "vs_onednn", "oneDNN, bf16", "tab:pink")]
ROW = re.compile(r"forward/(?P<variant>[^/]+)/(?P<shape>[^/]+)/T:(?P<tokens>\d+)/threads:(?P<threads>\d+)")


def read(file):
    """[(variant, shape, tokens, threads, counters)]"""
    rows = []
    for row in json.loads(file.read_text())["benchmarks"]:
        match = ROW.match(row["name"])
        if match and not row.get("error_occurred"):
            rows.append((match["variant"], match["shape"], int(match["tokens"]), int(match["threads"]), row))
    return rows


def variants(rows):
    """[(variant, colour, mark)]"""
    names = list(dict.fromkeys(row[0] for row in rows))
    if len(names) > len(COLOURS):
        sys.exit(f"plot.py has {len(COLOURS)} colours for {len(names)} variants ({', '.join(names)}): add to COLOURS "
                 "and MARKS")
    return list(zip(names, COLOURS, MARKS))


def check_peers(rows):
    known = {(variant, counter) for variant, counter, _, _ in PEERS}
    for variant, _, _, _, counters in rows:
        for counter in counters:
            if counter.startswith("vs_") and counter != "vs_naive" and (variant, counter) not in known:
                sys.exit(f"plot.py does not know {counter} of {variant}: add it to PEERS")


def of(rows, variant, shape, tokens=None, threads=None):
    return [row for row in rows if row[0] == variant and row[1] == shape
            and tokens in (None, row[2]) and threads in (None, row[3])]


def roofline(axes, rows, shape, threads):
    for variant, colour, _ in variants(rows):
        found = [row[4] for row in of(rows, variant, shape, threads=threads)]
        n = [c["rows_per_expert"] for c in found]
        axes.plot(n, [c["GFLOP/s"] for c in found], "o", color=colour, label=variant if found else None)
        axes.plot(n, [c["GFLOP/s"] * c["of_limit"] for c in found], "-", color=colour, linewidth=1)
    axes.set(yscale="log", xlabel="rows per expert", ylabel="GFLOP/s",
             title=f"{shape}, threads: {threads}; dots measured, lines the machine's limit")
    axes.set_xscale("log", base=2)


def tokens(axes, rows, shape, threads):
    for variant, counter, label, colour in PEERS:
        found = [row for row in of(rows, variant, shape, threads=threads) if counter in row[4]]
        axes.plot([row[2] for row in found], [row[4]["tokens/s"] / row[4][counter] for row in found],
                  "--", color=colour, label=label if found else None)
    for variant, colour, _ in variants(rows):
        found = of(rows, variant, shape, threads=threads)
        axes.plot([row[2] for row in found], [row[4]["tokens/s"] for row in found],
                  "o-", color=colour, label=variant if found else None)
    axes.set(yscale="log", xlabel="tokens in a call", ylabel="tokens/s", title=f"{shape}, threads: {threads}")
    axes.set_xscale("log", base=2)


def scaling(axes, rows, shape, threads):
    for variant, colour, mark in variants(rows):
        for count, line in [(1, ":"), (32, "--"), (512, "-")]:
            found = of(rows, variant, shape, tokens=count)
            alone = [row[4]["tokens/s"] for row in found if row[3] == 1]
            if alone and len(found) > 1:
                axes.plot([row[3] for row in found], [row[4]["tokens/s"] / alone[0] for row in found],
                          mark + line, color=colour, label=f"{variant}, T = {count}")
    if axes.lines:
        axes.plot([1, threads], [1, threads], "-", color="0.7", label="ideal")
    axes.set(xlabel="threads", ylabel="speed over one thread", title=shape)
    axes.xaxis.get_major_locator().set_params(integer=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=pathlib.Path)
    parser.add_argument("--shape", action="append", help="may be repeated; all that were measured otherwise")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--png", action="store_true", help="instead of SVG")
    arguments = parser.parse_args()
    rows = read(arguments.json)
    measured = list(dict.fromkeys(row[1] for row in rows))
    if not measured:
        sys.exit(f"{arguments.json} holds no rows forward/...: was layer_bench run with a filter?")
    check_peers(rows)
    out = arguments.out or arguments.json.parent
    out.mkdir(parents=True, exist_ok=True)
    for shape in arguments.shape or measured:
        if shape not in measured:
            sys.exit(f"{arguments.json} holds no rows of {shape}, only of {', '.join(measured)}")
        threads = max(row[3] for row in rows if row[1] == shape)
        for name, draw in [("roofline", roofline), ("tokens", tokens), ("threads", scaling)]:
            figure, axes = plt.subplots(figsize=(8, 4.5))
            draw(axes, rows, shape, threads)
            axes.grid(True, which="major", color="0.9")
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize="small", bbox_to_anchor=(1.02, 1), loc="upper left")
                file = out / f"{name}-{shape}.{'png' if arguments.png else 'svg'}"
                figure.savefig(file, dpi=150, bbox_inches="tight")
                print(file)
            plt.close(figure)


if __name__ == "__main__":
    main()
