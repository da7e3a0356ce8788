#!/usr/bin/env python3
"""Prefill and decode speed of lowbit beside the Python stack and llama.cpp, in one run on one machine.

    python benchmarks/peers/generate.py --lowbit build/cpu/src/cli/lowbit --model QUANTIZED_DIR \
        --float FLOAT_DIR --gguf FILE.gguf [--threads 2] [-o table.md]

Peers whose package or model is missing are left out, and the table says so. Contestants take turns (`--rounds`), and
the median of the rounds is shown, because a shared machine's memory bandwidth drifts.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time


def lowbit(args, model):
    """`lowbit bench generate --json` in a process of its own."""
    command = [args.lowbit, "bench", "generate", model, "--prompt-tokens", str(args.prompt), "--new-tokens",
               str(args.new), "--threads", str(args.threads), "--json"]
    out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return out["prefill_tokens_per_s"], out["decode_tokens_per_s"]


class Transformers:
    """A Transformers model, loaded once; kind is bf16, f32, nf4 or int8."""

    def __init__(self, args, kind):
        import torch
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig
        torch.set_num_threads(args.threads)
        config = {
            "nf4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                              bnb_4bit_use_double_quant=True,
                                              bnb_4bit_compute_dtype=torch.bfloat16),
            "int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
        }.get(kind, lambda: None)()
        kwargs = {"quantization_config": config} if config else {}
        dtype = torch.float32 if kind == "f32" else torch.bfloat16
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(args.float, dtype=dtype, device_map="cpu", **kwargs).eval()
        self.vocab = self.model.config.vocab_size

    def run(self, args):
        torch = self.torch
        ids = torch.randint(5, self.vocab, (1, args.prompt), generator=torch.Generator().manual_seed(1))
        options = dict(do_sample=False, eos_token_id=-1, pad_token_id=0)
        with torch.inference_mode():
            start = time.perf_counter()
            self.model(ids, logits_to_keep=1)
            prefill = args.prompt / (time.perf_counter() - start)
            new = max(8, args.new // 8)  # the slow peers do a few tokens; the rate is per token anyway
            times = []
            for count in (4, 4 + new):
                start = time.perf_counter()
                self.model.generate(ids[:, :16], max_new_tokens=count, min_new_tokens=count, **options)
                times.append(time.perf_counter() - start)
        return prefill, new / (times[1] - times[0])


class LlamaCpp:
    """llama.cpp through its Python binding."""

    def __init__(self, args):
        from llama_cpp import Llama
        self.llm = Llama(args.gguf, n_ctx=2048, n_threads=args.threads, n_threads_batch=args.threads, n_batch=512,
                         verbose=False)

    def run(self, args):
        self.llm.reset()
        ids = [5 + (i * 7919) % 40000 for i in range(args.prompt)]
        start = time.perf_counter()
        self.llm.eval(ids)
        prefill = args.prompt / (time.perf_counter() - start)
        self.llm.reset()
        self.llm.eval(ids[:16])
        start = time.perf_counter()
        for i in range(args.new):
            self.llm.eval([ids[i % args.prompt]])
        return prefill, args.new / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowbit", required=True, help="the lowbit executable")
    parser.add_argument("--model", required=True, action="append", help="directory that `lowbit quantize` wrote (may repeat)")
    parser.add_argument("--float", help="float directory for Transformers")
    parser.add_argument("--gguf", help="GGUF file for llama.cpp")
    parser.add_argument("--peers", default="bf16,nf4,int8,llama.cpp")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output")
    args = parser.parse_args()

    contestants = {f"lowbit {os.path.basename(m.rstrip('/'))}": (lambda m=m: lowbit(args, m)) for m in args.model}
    missing = []
    for peer in args.peers.split(","):
        try:
            if peer == "llama.cpp":
                runner = LlamaCpp(args)
                name = f"llama.cpp {os.path.basename(args.gguf)}"
            else:
                runner = Transformers(args, peer)
                name = f"Transformers {peer}"
            contestants[name] = lambda runner=runner: runner.run(args)
        except Exception as error:  # a missing package or file leaves its row out, and is said
            missing.append(f"{peer}: {type(error).__name__}: {error}")

    results = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name, run in contestants.items():
            results[name].append(run())
    lines = ["| | prefill %d, tok/s | decode, tok/s | decode min..max |" % args.prompt, "| --- | --- | --- | --- |"]
    for name, runs in results.items():
        decode = [r[1] for r in runs]
        lines.append("| %s | %.0f | %.1f | %.1f..%.1f |" % (name, statistics.median(r[0] for r in runs),
                                                        statistics.median(decode), min(decode), max(decode)))
    lines += [f"Left out: {m}" for m in missing]
    table = "\n".join(lines) + "\n"
    sys.stdout.write(table)
    if args.output:
        with open(args.output, "w") as file:
            file.write(table)


if __name__ == "__main__":
    main()
