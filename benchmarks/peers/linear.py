#!/usr/bin/env python3
"""Linear layers of bitsandbytes beside those of lowbit: the shapes, the method and the JSON of `lowbit bench linear`.

    python benchmarks/peers/linear.py --shapes 4096x4096,14336x4096 --m 1,8,64 --type nf4,int8 \
        --lowbit build/gpu/src/cli/lowbit -o bitsandbytes.json

Without --lowbit, bitsandbytes alone is measured; benchmarks/compare.py joins two files later.
"""
import argparse
import logging

import torch

import stopwatch

OUTLIER_STEP, OUTLIER_SCALE = 1000, 20.0


def layers(type_, weight, count, blocksize, double_quant):
    """`count` layers of bitsandbytes with this weight, each in memory of its own; None where it has no such layer."""
    import bitsandbytes as bnb
    n, k = weight.shape
    made = []
    for _ in range(count):
        if type_ in ("nf4", "fp4"):
            layer = bnb.nn.Linear4bit(k, n, bias=False, compute_dtype=weight.dtype, quant_type=type_, device="meta")
            layer.weight = bnb.nn.Params4bit(weight.cpu(), requires_grad=False, compress_statistics=double_quant,
                                             blocksize=blocksize, quant_type=type_)
        elif type_ == "int8":
            layer = bnb.nn.Linear8bitLt(k, n, bias=False, has_fp16_weights=False, threshold=6.0, device="meta")
            layer.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
        else:
            return None
        made.append(layer.to(weight.device).eval())
    return made


def weight_bytes(layer):
    """Codes and statistics."""
    weight = layer.weight
    total = weight.data.nbytes
    state = getattr(weight, "quant_state", None)
    if state is None:
        return total + (weight.SCB.nbytes if getattr(weight, "SCB", None) is not None else 4 * weight.shape[0])
    total += state.absmax.nbytes
    if state.nested:
        total += state.state2.absmax.nbytes
    return total


def forward(run, x, count):
    def work(call):
        with torch.inference_mode():
            run(x, call % count)
    return work


def backward(run, x, g, count):
    """The gradient of x alone: the forward passes are done once, and their graphs kept."""
    x = x.detach().requires_grad_()
    outputs = [run(x, i) for i in range(count)]
    return lambda call: torch.autograd.grad(outputs[call % count], x, g, retain_graph=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="4096x4096,14336x4096", help="weights as NxK, by commas")
    parser.add_argument("--m", default="1,8,64,512", help="tokens, by commas")
    parser.add_argument("--type", default="nf4", help="nf4, fp4, int8, by commas")
    parser.add_argument("--dtype", default="bfloat16", help="of activations and of the float layer")
    parser.add_argument("--blocksize", type=int, default=64)
    parser.add_argument("--no-double-quant", action="store_true")
    parser.add_argument("--backward", action="store_true", help="also the gradient of the input")
    stopwatch.add_options(parser)
    args = parser.parse_args()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of each cast to float16

    device, dtype = stopwatch.choose_device(args.device), getattr(torch, args.dtype)
    watch = stopwatch.Stopwatch(device, args.seconds)
    cache = stopwatch.l2_bytes(device)
    rotation = lambda size: 4 * cache // size + 2 if cache else 1
    torch.manual_seed(1)
    rows = []
    for shape in args.shapes.split(","):
        n, k = map(int, shape.split("x"))
        w = torch.empty(n, k, device=device, dtype=dtype).normal_(0, 0.02)
        dense = [w.clone() for _ in range(rotation(w.nbytes))]
        for type_ in args.type.split(","):
            first = layers(type_, w, 1, args.blocksize, not args.no_double_quant)
            if first is None:
                continue
            quantized = first + layers(type_, w, rotation(weight_bytes(first[0])) - 1, args.blocksize,
                                       not args.no_double_quant)
            for m in map(int, args.m.split(",")):
                x = torch.empty(m, k, device=device, dtype=dtype).normal_()
                x[:, ::OUTLIER_STEP] *= OUTLIER_SCALE
                g = torch.empty(m, n, device=device, dtype=dtype).normal_()
                run, run_dense = (lambda a, i: quantized[i](a)), (lambda a, i: torch.nn.functional.linear(a, dense[i]))
                for is_backward in (False, True)[:2 if args.backward else 1]:
                    contestants = ((run, len(quantized)), (run_dense, len(dense)))
                    times = watch([backward(f, x, g, c) if is_backward else forward(f, x, c) for f, c in contestants])
                    (seconds, spread), (float_seconds, _) = times
                    rows.append({"n": n, "k": k, "m": m, "type": type_, "backward": is_backward, "seconds": seconds,
                                 "spread": spread,
                                 "bytes_per_s": (weight_bytes(quantized[0]) + x.nbytes + g.nbytes) / seconds,
                                 "flops": 2.0 * n * k * m / seconds, "float_seconds": float_seconds,
                                 "ratio": float_seconds / seconds})
    settings = {"dtype": args.dtype, "blocksize": args.blocksize, "double_quant": not args.no_double_quant}
    options = ["--shapes", args.shapes, "--m", args.m, "--type", args.type, "--dtype", args.dtype, "--blocksize",
               str(args.blocksize)]
    options += ["--no-double-quant"] * args.no_double_quant + ["--backward"] * args.backward
    stopwatch.finish(args, stopwatch.report("linear", device, watch, settings, rows), options)


if __name__ == "__main__":
    main()
