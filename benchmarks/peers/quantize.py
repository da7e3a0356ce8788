#!/usr/bin/env python3
"""Quantizing with bitsandbytes beside lowbit: the tensors, the method and the JSON of `lowbit bench quantize`.

    python benchmarks/peers/quantize.py --type nf4,fp4,int8,blockwise --lowbit build/gpu/src/cli/lowbit -o bitsandbytes.json
"""
import argparse

import torch

import stopwatch

COLUMNS, OUTLIER_STEP = 4096, 1000


def fourbit(w, type_, blocksize):
    """(name, bytes that must move, work) of each operation."""
    import bitsandbytes.functional as F
    for nested in (False, True):
        def quantize(nested=nested):
            return F.quantize_4bit(w, blocksize=blocksize, compress_statistics=nested, quant_type=type_)
        packed, state = quantize()
        blocks = -(-w.numel() // blocksize)
        size = w.nbytes + packed.nbytes + blocks * (1 + 4 / 256 if nested else 4)
        name = "%s %d%s" % (type_, blocksize, ", double quantization" if nested else "")
        yield "quantize_4bit " + name, size, quantize
        yield "dequantize_4bit " + name, size, lambda p=packed, s=state: F.dequantize_4bit(p, s)


def blockwise(w, blocksize):
    import bitsandbytes.functional as F
    code = F.create_dynamic_map().to(w.device)
    codes, state = F.quantize_blockwise(w, code=code, blocksize=blocksize)
    size = w.nbytes + codes.nbytes + state.absmax.nbytes
    yield "quantize_blockwise %d" % blocksize, size, lambda: F.quantize_blockwise(w, code=code, blocksize=blocksize)
    yield "dequantize_blockwise %d" % blocksize, size, lambda: F.dequantize_blockwise(codes, state)


def int8(w):
    import bitsandbytes.functional as F
    size = w.nbytes + w.numel() + 4 * w.shape[0]
    half = w.half()  # the only dtype that it takes
    x = half.clamp(-5, 5)
    x[:, ::OUTLIER_STEP] = 20
    yield "int8_vectorwise_quant, no threshold", size, lambda: F.int8_vectorwise_quant(half, 0.0)
    yield ("int8_vectorwise_quant, threshold 6 (lists columns: waits)", size, lambda: F.int8_vectorwise_quant(x, 6.0))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", default="nf4,fp4,int8,blockwise", help="by commas")
    parser.add_argument("--elements", type=int, help="default: 33554432 on the CPU, 268435456 on a GPU")
    parser.add_argument("--dtype", default="bfloat16")
    stopwatch.add_options(parser)
    args = parser.parse_args()

    device = stopwatch.choose_device(args.device)
    elements = args.elements or (1 << 25 if device == "cpu" else 1 << 28)
    count = max(elements // COLUMNS, 1) * COLUMNS
    torch.manual_seed(1)
    w = torch.empty(count // COLUMNS, COLUMNS, device=device, dtype=getattr(torch, args.dtype)).normal_()
    target = torch.empty_like(w)
    watch = stopwatch.Stopwatch(device, args.seconds)
    rows = []
    with torch.inference_mode():
        for type_ in args.type.split(","):
            made = {"int8": lambda: int8(w), "blockwise": lambda: blockwise(w, 256)}.get(
                type_, lambda: fourbit(w, type_, 64))
            for name, size, work in made():
                (seconds, spread), (copy, _) = watch([lambda call: work(), lambda call: target.copy_(w)])
                rows.append({"op": name, "elements": count, "seconds": seconds, "spread": spread,
                             "bytes_per_s": size / seconds, "part_of_copy": size / seconds * copy / (2 * w.nbytes)})
    options = ["--type", args.type, "--elements", str(count), "--dtype", args.dtype]
    result = stopwatch.report("quantize", device, watch, {"dtype": args.dtype, "elements": count}, rows)
    stopwatch.finish(args, result, options)


if __name__ == "__main__":
    main()
