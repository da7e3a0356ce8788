#!/usr/bin/env python3
"""Whether two files of `lowbit logits` agree: relative error in L2 and how often the likeliest token is the same.

    tests/compare_logits.py ONE.safetensors TWO.safetensors --error 0.05
    tests/compare_logits.py ONE.safetensors TWO.safetensors --noise THREE.safetensors

--noise: the limit is 1.5 times the difference of TWO and THREE, which say the same but for the order of sums. LLM.int8()
needs it: a last bit moves a code by a whole step, or a column across the threshold, and layers add that up.

Exit code 1 where a limit is not kept."""
import argparse
import sys

from safetensors.torch import load_file


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("one")
    parser.add_argument("two")
    limit = parser.add_mutually_exclusive_group(required=True)
    limit.add_argument("--error", type=float, help="largest relative error")
    limit.add_argument("--noise", help="a file whose difference from TWO is noise")
    args = parser.parse_args()
    logits = lambda path: load_file(path)["logits"].double()
    one, two = logits(args.one), logits(args.two)
    if one.shape != two.shape:
        sys.exit(f"shapes differ: {tuple(one.shape)} and {tuple(two.shape)}")
    difference = lambda a: float((a - two).norm() / two.norm())
    error = difference(one)
    most = args.error if args.noise is None else 1.5 * difference(logits(args.noise))
    top1 = float((one.argmax(-1) == two.argmax(-1)).double().mean())
    print(f"logits {tuple(one.shape)}: relative error {error:.2e} (limit {most:.1e}), "
          f"likeliest token equal {top1:.1%}: {'ok' if error <= most else 'NOT MET'}")
    sys.exit(0 if error <= most else 1)


if __name__ == "__main__":
    main()
