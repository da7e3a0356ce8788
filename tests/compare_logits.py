#!/usr/bin/env python3
"""Whether two files of `lowbit logits` agree: relative error in L2 and how often the likeliest token is the same.

    tests/compare_logits.py ONE.safetensors TWO.safetensors --error 0.05 --top1 0.95

Exit code 1 where a limit is not kept."""
import argparse
import sys

from safetensors.torch import load_file


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("one")
    parser.add_argument("two")
    parser.add_argument("--error", type=float, required=True, help="largest relative error")
    parser.add_argument("--top1", type=float, required=True, help="smallest share of equal likeliest tokens")
    args = parser.parse_args()
    one, two = (load_file(path)["logits"].double() for path in (args.one, args.two))
    if one.shape != two.shape:
        sys.exit(f"shapes differ: {tuple(one.shape)} and {tuple(two.shape)}")
    error = float((one - two).norm() / two.norm())
    top1 = float((one.argmax(-1) == two.argmax(-1)).double().mean())
    agree = error <= args.error and top1 >= args.top1
    print(f"logits {tuple(one.shape)}: relative error {error:.2e} (limit {args.error:.0e}), "
          f"likeliest token equal {top1:.1%} (limit {args.top1:.0%}): {'ok' if agree else 'NOT MET'}")
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()
