"""Checks that Transformers and bitsandbytes read what lowbit writes, and the other way round, on the CPU.

    python check_interop.py --lowbit build/cpu/src/cli/lowbit --model MODEL [--tokens 24]

MODEL is a model directory or a GGUF file. Needs the packages torch, transformers, accelerate, bitsandbytes and safetensors.
For each of nf4 (double quantization), fp4 and int8:
  ours    lowbit quantizes and writes; Transformers loads the directory.
  theirs  Transformers quantizes and writes; lowbit loads the directory.
Both sides compute in float32. Logits must agree, and the greedy continuation that Transformers finds must be, at every
position, what lowbit would choose, too. Prints a table; exit status 1 when anything differs.
"""

import argparse
import logging
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

PROMPT = "Water boils at a temperature of"
# LLM.int8() rounds activations to 8 bits. The last bit of an activation decides codes, and a deep model makes two such
# roundings independent of each other: against the same weights without rounded activations, Transformers was seen 0.10
# off and lowbit 0.14 (SmolLM2-135M, 23 tokens). A wrong scale or column gives errors of the order of 1.
LIMITS = {"nf4": 1e-4, "fp4": 1e-4, "int8": 0.3}


def run(*command):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stderr}")


def quantization_config(kind):
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=kind == "nf4",
        bnb_4bit_compute_dtype=torch.float32,
    )


def lowbit_logits(lowbit, directory, ids, work):
    out = work / "logits.safetensors"
    run(lowbit, "logits", directory, "--ids", ",".join(map(str, ids)), "--dtype", "float32", "-o", out)
    return load_file(out)["logits"]


def compare(lowbit, directory, work, count):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, device_map="cpu")
    prompt = tokenizer(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**prompt, max_new_tokens=count, do_sample=False)[0]
        theirs = model(ids[None]).logits[0].float()
    ours = lowbit_logits(lowbit, directory, ids.tolist(), work)
    error = ((ours - theirs).norm() / theirs.norm()).item()
    start = prompt["input_ids"].shape[1]
    chosen = ours.argmax(-1)[start - 1 : -1]
    return error, (chosen == ids[start:]).sum().item(), len(ids) - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lowbit", required=True, type=pathlib.Path)
    parser.add_argument("--model", required=True, type=pathlib.Path)
    parser.add_argument("--tokens", default=24, type=int)
    parser.add_argument("--kinds", default="nf4,fp4,int8")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)

    failed = False
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        dense = work / "dense"
        run(arguments.lowbit, "dequantize", arguments.model, dense, "--dtype", "float32")
        print(f"{'kind':6} {'written by':12} {'relative error':>16} {'same greedy tokens':>20}")
        for kind in arguments.kinds.split(","):
            ours, theirs = work / f"{kind}_lowbit", work / f"{kind}_transformers"
            run(arguments.lowbit, "quantize", dense, ours, "--type", kind, *(["--double-quant"] if kind == "nf4" else []))
            model = AutoModelForCausalLM.from_pretrained(
                dense, dtype=torch.float32, device_map="cpu", quantization_config=quantization_config(kind)
            )
            model.save_pretrained(theirs)
            AutoTokenizer.from_pretrained(dense).save_pretrained(theirs)
            del model
            for writer, directory in (("lowbit", ours), ("transformers", theirs)):
                error, same, count = compare(arguments.lowbit, directory, work, arguments.tokens)
                good = error <= LIMITS[kind] and (same == count or kind == "int8")
                failed |= not good
                print(f"{kind:6} {writer:12} {error:16.2e} {f'{same}/{count}':>20}  {'ok' if good else 'DIFFERS'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
