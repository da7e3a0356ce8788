#!/usr/bin/env python3
"""Two results of `lowbit bench linear|quantize|optimizer --json` (or of benchmarks/peers), side by side.

    python benchmarks/compare.py A.json B.json [-o table.md]

Rows are joined by shape, tokens, type and pass, by operation, or by optimizer; what only one file holds is left out,
and counted.
The last column is B's time over A's: above 1, A is faster. Standard library only.
"""
import argparse
import json
import pathlib
import sys


def key(bench, row):
    if bench == "linear":
        return (row["n"], row["k"], row["m"], row["type"], row["backward"])
    if bench == "optimizer":
        return (row["optimizer"], row["tensors"], row["elements"])
    return (row["op"], row["elements"])


def label(bench, row):
    if bench == "linear":
        return ["%dx%d" % (row["n"], row["k"]), str(row["m"]), row["type"], "backward" if row["backward"] else "forward"]
    return [str(part) for part in key(bench, row)]


LABELS = {"linear": ["N x K", "M", "type", "pass"], "quantize": ["op", "elements"],
          "optimizer": ["optimizer", "tensors", "elements"]}


def share(bench, row):
    """What makes results of two machines comparable: the ratio to the float layer, or the part of a copy."""
    return "%.2fx" % row["ratio"] if bench == "linear" else "%.0f %%" % (100 * row["part_of_copy"])


BASELINE = {"optimizer": ["torch fused AdamW us"]}


def baseline(bench, row):
    """What `row` was measured beside, for benches that say so in microseconds."""
    return ["%.1f" % (row["torch_fused_adamw_seconds"] * 1e6)] if bench in BASELINE else []


def title(result):
    commit = " (%s)" % result["commit"] if result.get("commit") else ""
    return "%s %s%s, %s, %s, %s" % (result["library"], result["version"], commit, result["machine"],
                                    result["dtype"], result["date"])


def markdown(header, rows):
    lines = [header, ["---"] * len(header)] + rows
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def microseconds(row):
    return "%.2f" % (row["seconds"] * 1e6) if row["seconds"] < 1e-4 else "%.1f" % (row["seconds"] * 1e6)


def share_name(result):
    if result["bench"] != "linear":
        return "of copy"
    return "x " + ("cuBLAS " if result["device"].startswith("cuda") else "float ") + result["dtype"]


def table(result):
    """One result alone."""
    bench = result["bench"]
    rows = [label(bench, r) + [microseconds(r), "%.0f" % (100 * r["spread"]), share(bench, r)] + baseline(bench, r)
            for r in result["rows"]]
    header = LABELS[bench] + ["us", "spread %", share_name(result)] + BASELINE.get(bench, [])
    return title(result) + "\n\n" + markdown(header, rows)


def side_by_side(a, b):
    if a["bench"] != b["bench"]:
        raise SystemExit("compare: one file is of bench %s, the other of bench %s" % (a["bench"], b["bench"]))
    bench = a["bench"]
    others = {key(bench, row): row for row in b["rows"]}
    rows = []
    for row in a["rows"]:
        other = others.get(key(bench, row))
        if other:
            rows.append(label(bench, row) + [microseconds(row), microseconds(other), share(bench, row),
                                             share(bench, other), "%.2f" % (other["seconds"] / row["seconds"])] +
                        baseline(bench, row))
    names = [a["library"], b["library"]]
    if names[0] == names[1]:
        names = ["A", "B"]
    header = LABELS[bench] + ["%s us" % name for name in names]
    header += ["%s, %s" % (name, share_name(r)) for name, r in zip(names, (a, b))] + ["%s / %s" % (names[1], names[0])]
    header += BASELINE.get(bench, [])
    text = "%s: %s\n%s: %s\n" % (names[0], title(a), names[1], title(b))
    if a["machine"].split(",")[0] != b["machine"].split(",")[0]:
        text += "Different machines: only the shares compare.\n"
    left = len(a["rows"]) + len(b["rows"]) - 2 * len(rows)
    if left:
        text += "%d rows that one of them has alone are left out.\n" % left
    return text + "\n" + markdown(header, rows)


def load(path):
    try:
        return json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise SystemExit("compare: %s cannot be read: %s" % (path, error))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("-o", "--output", help="write the table here, too")
    args = parser.parse_args()
    text = side_by_side(load(args.a), load(args.b))
    sys.stdout.write(text)
    if args.output:
        pathlib.Path(args.output).write_text(text)


if __name__ == "__main__":
    main()
