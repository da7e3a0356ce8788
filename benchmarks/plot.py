#!/usr/bin/env python3
"""Draws results as SVG: the linear layer's ratio to cuBLAS over tokens, or the quantizers' share of a copy.

    python benchmarks/plot.py RESULT [PEER] -o FILE.svg [--type nf4] [--backward]

RESULT is the JSON of `lowbit bench linear|quantize` or of fourbit_matmul_cuda_bench, or a page of benchmarks/results
that holds such a table. PEER is another one, such as benchmarks/peers writes: its lines are dashed, its bars gray.
Standard library only.
"""
import argparse
import html
import json
import math
import pathlib
import re

COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444"]
INK, FAINT, PEER = "#1f2328", "#d0d7de", "#8c959f"


def markdown_rows(text):
    """The first table, as dictionaries, and the sentence before it."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines[:-1]) if line.startswith("|") and re.match(r"\|[ :|-]+$", lines[i + 1])),
                 None)
    if start is None:
        raise SystemExit("plot: the page holds no table")
    cells = lambda line: [cell.strip() for cell in line.strip().strip("|").split("|")]
    header, rows = cells(lines[start]), []
    for line in lines[start + 2:]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(header, cells(line))))
    before = [line for line in lines[:start] if line and not line.startswith("#")]
    return rows, " ".join(before)


def read(path):
    """{"bench", "title", "name", "rows"}: rows of bench linear or bench quantize, whatever wrote them."""
    try:
        text = pathlib.Path(path).read_text()
    except OSError as error:
        raise SystemExit("plot: %s" % error)
    if path.endswith(".md"):
        rows, before = markdown_rows(text)
        machine = (re.search(r"NVIDIA [^,.]*|CPU, [^.]*", before) or [""])[0]
        commit = re.search(r"commit (\w+)", before)
        title = machine + (", lowbit (%s)" % commit[1] if commit else "")
        if "op" in rows[0]:
            made = [{"op": r["op"], "part_of_copy": float(r["% of copy"]) / 100,
                     "goal": float(r["goal %"]) / 100 if r.get("goal %") else None} for r in rows if r["op"] != "copy"]
            return {"bench": "quantize", "title": title, "name": "lowbit", "rows": made}
        made = []
        for r in rows:
            n, k = map(int, r["N x K"].split("x"))
            made.append({"n": n, "k": k, "m": int(r["M"]), "type": r.get("type", "nf4"), "kernel": r.get("kernel", ""),
                         "backward": r.get("pass") == "backward", "ratio": float(r["ratio"].rstrip("x"))})
        return {"bench": "linear", "title": title, "name": "lowbit", "rows": made}
    try:
        data = json.loads(text)
    except ValueError as error:
        raise SystemExit("plot: %s is no JSON: %s" % (path, error))
    if isinstance(data, list):  # fourbit_matmul_cuda_bench
        rows = [{**r, "type": "nf4", "backward": False, "ratio": r["cublas_us"] / r["us"]} for r in data]
        return {"bench": "linear", "title": "", "name": "lowbit", "rows": rows}
    commit = " (%s)" % data["commit"] if data.get("commit") else ""
    title = "%s, %s %s%s, %s" % (data["machine"], data["library"], data["version"], commit, data["date"])
    return {"bench": data["bench"], "title": title, "name": data["library"], "rows": data["rows"]}


class Svg:
    def __init__(self, width, height):
        self.parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" '
                      'font-family="system-ui, sans-serif" font-size="13">' % (width, height, width, height),
                      '<rect width="%d" height="%d" rx="8" fill="#ffffff"/>' % (width, height)]

    def text(self, x, y, text, anchor="start", fill=INK, size=13, weight="normal"):
        self.parts.append('<text x="%.1f" y="%.1f" text-anchor="%s" fill="%s" font-size="%d" font-weight="%s">%s</text>'
                          % (x, y, anchor, fill, size, weight, html.escape(text)))

    def line(self, x1, y1, x2, y2, color=FAINT, width=1.0, dash=""):
        self.parts.append('<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%.1f"%s/>'
                          % (x1, y1, x2, y2, color, width, ' stroke-dasharray="%s"' % dash if dash else ""))

    def curve(self, points, color, dash=""):
        self.parts.append('<polyline points="%s" fill="none" stroke="%s" stroke-width="2"%s/>'
                          % (" ".join("%.1f,%.1f" % p for p in points), color,
                             ' stroke-dasharray="%s"' % dash if dash else ""))
        if not dash:
            self.parts += ['<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>' % (x, y, color) for x, y in points]

    def bar(self, x, y, width, height, color):
        self.parts.append('<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="2" fill="%s"/>'
                          % (x, y, width, height, color))

    def save(self, path):
        pathlib.Path(path).write_text("\n".join(self.parts + ["</svg>"]) + "\n")


def curves(result, type_, backward):
    """{(n, k): [(m, ratio)]}. A kernel that the plan does not choose is not what a user gets."""
    found = {}
    for row in result["rows"]:
        chosen = not row.get("kernel", "").startswith("~") and "not advised" not in row.get("kernel", "")
        if row["type"] == type_ and row["backward"] == backward and chosen:
            found.setdefault((row["n"], row["k"]), []).append((row["m"], row["ratio"]))
    return {shape: sorted(points) for shape, points in found.items()}


def plot_linear(result, peer, type_, backward, path):
    own = curves(result, type_, backward)
    other = curves(peer, type_, backward) if peer else {}
    points = [p for lines in (own, other) for line in lines.values() for p in line]
    if not points:
        raise SystemExit("plot: no %s rows of type %s" % ("backward" if backward else "forward", type_))
    width, height, left, right, top, bottom = 760, 430, 60, 160, 70, 60
    tokens = sorted({m for m, _ in points})
    low, high = math.log2(tokens[0]), math.log2(max(tokens[-1], tokens[0] * 2))
    most = max(1.25, math.ceil(max(ratio for _, ratio in points) * 4 + 0.5) / 4)
    x = lambda m: left + (math.log2(m) - low) / (high - low) * (width - left - right)
    y = lambda ratio: height - bottom - ratio / most * (height - top - bottom)
    svg = Svg(width, height)
    svg.text(left, 28, "Linear layer in %s%s: speed as a multiple of cuBLAS"
             % (type_.upper() if type_ != "int8" else "LLM.int8()", ", gradient of the input" if backward else ""),
             size=16, weight="bold")
    svg.text(left, 48, result["title"], fill="#59636e", size=12)
    for i in range(int(most * 2) + 1):
        svg.line(left, y(i / 2), width - right, y(i / 2))
        svg.text(left - 8, y(i / 2) + 4, "%.1fx" % (i / 2), "end")
    svg.line(left, y(1), width - right, y(1), INK, 1.2)
    svg.text(width - right + 6, y(1) + 4, "cuBLAS", size=12)
    shown = -100.0
    for m in tokens:
        if x(m) - shown > 24:
            svg.text(x(m), height - bottom + 20, str(m), "middle")
            shown = x(m)
    svg.text((left + width - right) / 2, height - 16, "tokens (M)", "middle")
    for i, shape in enumerate(sorted(set(own) | set(other), key=lambda s: (-s[0] * s[1], s))):
        color, at = COLORS[i % len(COLORS)], top + 12 + 20 * i
        for lines, dash in ((own, ""), (other, "5 4")):
            if shape in lines:
                svg.curve([(x(m), y(ratio)) for m, ratio in lines[shape]], color, dash)
        svg.line(width - right + 20, at - 4, width - right + 44, at - 4, color, 2)
        svg.text(width - right + 50, at, "%dx%d" % shape)
    if other:
        at = top + 24 + 20 * len(set(own) | set(other))
        svg.line(width - right + 20, at - 4, width - right + 44, at - 4, INK, 2, "5 4")
        svg.text(width - right + 50, at, peer["name"])
    svg.save(path)


def plot_quantize(result, peer, path):
    others = {row["op"]: row["part_of_copy"] for row in peer["rows"]} if peer else {}
    rows, step = result["rows"], 40 if others else 26
    label, right, top, bottom, span = 330, 60, 84, 40, 420
    width, height = label + span + right, top + step * len(rows) + bottom
    svg = Svg(width, height)
    svg.text(20, 28, "Quantize and dequantize: speed as a share of a copy", size=16, weight="bold")
    svg.text(20, 48, result["title"], fill="#59636e", size=12)
    if others:
        svg.text(20, 66, "Gray: %s" % peer["name"], fill="#59636e", size=12)
    for percent in (0, 25, 50, 75, 100):
        at = label + span * percent / 100
        svg.line(at, top - 8, at, height - bottom)
        svg.text(at, height - bottom + 20, "%d %%" % percent, "middle")
    for i, row in enumerate(rows):
        at, part = top + step * i, row["part_of_copy"]
        svg.text(label - 8, at + 13, row["op"], "end")
        svg.bar(label, at, span * min(part, 1.1), 17, COLORS[0] if "dequantize" not in row["op"] else COLORS[2])
        svg.text(label + span * min(part, 1.1) + 5, at + 13, "%.0f" % (100 * part), size=12)
        if row.get("goal"):
            svg.line(label + span * row["goal"], at - 3, label + span * row["goal"], at + 20, INK, 1.5)
        if row["op"] in others:
            other = others[row["op"]]
            svg.bar(label, at + 18, span * min(other, 1.1), 10, PEER)
            svg.text(label + span * min(other, 1.1) + 5, at + 27, "%.0f" % (100 * other), size=11, fill="#59636e")
    if any(row.get("goal") for row in rows):
        svg.text(width - 20, 66, "black line: goal", "end", "#59636e", 12)
    svg.save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result")
    parser.add_argument("peer", nargs="?")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--type", default="nf4", help="linear: nf4, fp4 or int8")
    parser.add_argument("--backward", action="store_true", help="linear: the gradient of the input")
    args = parser.parse_args()
    result, peer = read(args.result), read(args.peer) if args.peer else None
    if peer and peer["bench"] != result["bench"]:
        raise SystemExit("plot: %s is of bench %s, %s of bench %s"
                         % (args.result, result["bench"], args.peer, peer["bench"]))
    if result["bench"] == "linear":
        plot_linear(result, peer, args.type, args.backward, args.output)
    else:
        plot_quantize(result, peer, args.output)


if __name__ == "__main__":
    main()
