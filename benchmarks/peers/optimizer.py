#!/usr/bin/env python3
"""Optimizer steps of bitsandbytes and torch's fused AdamW beside lowbit: the cases and the JSON of `lowbit bench optimizer`.

    python benchmarks/peers/optimizer.py --lowbit build/gpu/src/cli/lowbit -o bitsandbytes.json
    python benchmarks/peers/optimizer.py --tensors 448 --elements 42000000 --optimizers adamw8bit -o bitsandbytes_448.json
"""
import argparse

import torch

import stopwatch

LR = 1e-5


def makers():
    import bitsandbytes.optim as optim
    return {
        "adamw8bit": lambda p: optim.AdamW8bit(p, lr=LR),
        "adamw32bit": lambda p: optim.AdamW32bit(p, lr=LR),
        "paged_adamw8bit": lambda p: optim.PagedAdamW8bit(p, lr=LR),
        "ademamix8bit": lambda p: optim.AdEMAMix8bit(p, lr=LR),
        "lion8bit": lambda p: optim.Lion8bit(p, lr=LR),
        "lion32bit": lambda p: optim.Lion32bit(p, lr=LR),
        "sgd8bit": lambda p: optim.SGD8bit(p, lr=LR, momentum=0.9),
        "rmsprop8bit": lambda p: optim.RMSprop8bit(p, lr=LR),
        "adagrad8bit": lambda p: optim.Adagrad8bit(p, lr=LR),
    }


def state_bytes(optimizer):
    """Moments and scales; the maps are shared."""
    kept = ("state1", "state2", "absmax1", "absmax2")
    return sum(s[name].nbytes for s in optimizer.state.values() for name in kept if s.get(name) is not None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", default="adamw8bit,adamw32bit,ademamix8bit,lion8bit,sgd8bit", help="by commas")
    parser.add_argument("--elements", type=int, help="default: 2^24 on the CPU, 2^28 on a GPU")
    parser.add_argument("--tensors", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    stopwatch.add_options(parser)
    args = parser.parse_args()

    device = stopwatch.choose_device(args.device)
    elements = args.elements or (1 << 24 if device == "cpu" else 1 << 28)
    each = elements // args.tensors
    torch.manual_seed(1)
    options = {"device": device, "dtype": getattr(torch, args.dtype)}
    params = [torch.nn.Parameter(torch.randn(each, **options) * 0.02) for _ in range(args.tensors)]
    for p in params:
        p.grad = torch.randn(each, **options) * 0.01
    source, target = torch.randn(elements, **options), torch.empty(elements, **options)
    fused = torch.optim.AdamW(params, lr=LR, fused=True)
    watch = stopwatch.Stopwatch(device, args.seconds)
    rows = []
    for name in args.optimizers.split(","):
        optimizer = makers()[name](params)
        (seconds, spread), (copy, _), (torch_seconds, _) = watch(
            [lambda call: optimizer.step(), lambda call: target.copy_(source), lambda call: fused.step()])
        states = state_bytes(optimizer)
        numel, item = each * args.tensors, source.element_size()
        rate = (3 * item * numel + 2 * states) / seconds
        rows.append({"optimizer": name, "tensors": args.tensors, "elements": elements, "dtype": args.dtype,
                     "seconds": seconds, "spread": spread, "bytes_per_s": rate,
                     "part_of_copy": rate * copy / (2 * item * elements), "state_bytes_per_parameter": states / numel,
                     "torch_fused_adamw_seconds": torch_seconds, "ratio": torch_seconds / seconds})
        del optimizer
    result = stopwatch.report("optimizer", device, watch,
                              {"dtype": args.dtype, "tensors": args.tensors, "elements": elements}, rows)
    stopwatch.finish(args, result, ["--optimizers", args.optimizers, "--tensors", str(args.tensors), "--elements",
                                    str(elements), "--dtype", args.dtype])


if __name__ == "__main__":
    main()
