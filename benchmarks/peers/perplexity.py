#!/usr/bin/env python3
"""Perplexity of one text under lowbit and under Transformers + bitsandbytes, on the CPU, with the same windows.

    python benchmarks/peers/perplexity.py --lowbit build/cpu/src/cli/lowbit --float FLOAT_DIR --text FILE \
        [--ctx 512] [--max-tokens 2048] [--kinds float,nf4,int8]

Each side quantizes FLOAT_DIR itself. Exit status 1 when lowbit's perplexity is above the other's by more than 0.5 %.
"""
import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

FLAGS = {"float": None, "nf4": ["--type", "nf4", "--double-quant"], "int8": ["--type", "int8"]}
LIMIT = 1.005


def run(*command):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stderr}")
    return result.stdout


def ours(args, kind, work):
    model = args.float
    if FLAGS[kind] is not None:
        model = work / kind
        run(args.lowbit, "quantize", args.float, model, *FLAGS[kind])
    out = json.loads(run(args.lowbit, "ppl", model, "--text", args.text, "--ctx", args.ctx, "--max-tokens",
                         args.max_tokens, "--json"))
    return out["perplexity"], out["tokens"]


def theirs(args, kind):
    config = {
        "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                  bnb_4bit_compute_dtype=torch.bfloat16),
        "int8": BitsAndBytesConfig(load_in_8bit=True),
    }.get(kind)
    kwargs = {"quantization_config": config} if config else {}
    model = AutoModelForCausalLM.from_pretrained(args.float, dtype=torch.bfloat16, device_map="cpu", **kwargs).eval()
    text = pathlib.Path(args.text).read_text()
    ids = torch.tensor(AutoTokenizer.from_pretrained(args.float)(text)["input_ids"])[: args.max_tokens]
    nll, count = 0.0, 0
    with torch.inference_mode():
        for begin in range(0, len(ids), args.ctx):
            window = ids[begin : begin + args.ctx]
            if len(window) < 2:
                break
            logits = model(window[None]).logits[0, :-1].double()
            nll += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
            count += len(window) - 1
    return math.exp(nll / count), count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowbit", required=True, type=pathlib.Path)
    parser.add_argument("--float", required=True, type=pathlib.Path)
    parser.add_argument("--text", required=True)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=2048)
    parser.add_argument("--kinds", default="float,nf4,int8")
    args = parser.parse_args()
    failed = False
    print("| weights | lowbit | Transformers + bitsandbytes | ratio | tokens |\n| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.kinds.split(","):
            mine, tokens = ours(args, kind, pathlib.Path(folder))
            other, count = theirs(args, kind)
            if tokens != count:
                sys.exit(f"{kind}: lowbit scored {tokens} tokens, Transformers {count}")
            failed |= mine > other * LIMIT
            print(f"| {kind} | {mine:.4f} | {other:.4f} | {mine / other:.4f} | {count} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
