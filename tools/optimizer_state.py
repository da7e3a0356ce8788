"""Optimizer states of Python's bitsandbytes (torch.save of state_dict()) as safetensors files of lowbit, and back.

    optimizer_state.py STATE.pt STATE.safetensors [--algorithm adam]
    optimizer_state.py STATE.safetensors STATE.pt

Needs torch and numpy. Names, shapes and dtypes stay; --algorithm lets lowbit refuse the state of another optimizer.
"""

import argparse
import json
import struct

import numpy
import torch

WRAPPED = "__bnb_optimizer_quant_state__"
DTYPES = {"F32": torch.float32, "U8": torch.uint8, "I64": torch.int64}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
TENSORS = {"state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2", "unorm_vec"}
# What lowbit's groups carry; the rest of a Python group (amsgrad, ...) is not read.
OPTIONS = {"lr", "betas", "eps", "weight_decay", "alpha", "t_alpha", "t_beta3"}


def write_safetensors(path, tensors, metadata):
    header, offset = {"__metadata__": metadata}, 0
    for name, tensor in sorted(tensors.items()):
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in sorted(tensors.items()):
            file.write(tensor.contiguous().numpy().tobytes())


def read_safetensors(path):
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        data = file.read()
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        raw = torch.from_numpy(numpy.frombuffer(data[begin:end], dtype=numpy.uint8).copy())
        tensors[name] = raw.view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata


def to_safetensors(source, target, algorithm):
    state_dict = torch.load(source, map_location="cpu", weights_only=True)
    tensors = {}
    for number, state in state_dict["state"].items():
        stem = f"state.{number}."
        tensors[stem + "step"] = torch.tensor(int(state["step"]), dtype=torch.int64)
        for name, value in {**state, **state.get(WRAPPED, {})}.items():
            if name in TENSORS:
                tensors[f"{stem}{WRAPPED}.{name}"] = value
    groups = [
        {"params": group["params"], **{name: group[name] for name in OPTIONS & set(group)}}
        for group in state_dict["param_groups"]
    ]
    metadata = {"format": "pt", "algorithm": algorithm, "param_groups": json.dumps(groups)}
    write_safetensors(target, tensors, metadata)


def to_pickle(source, target):
    tensors, metadata = read_safetensors(source)
    state = {}
    for name, tensor in tensors.items():
        _, number, part = name.split(".", 2)
        entry = state.setdefault(int(number), {WRAPPED: {}})
        if part == "step":
            entry["step"] = int(tensor)
        else:
            entry[WRAPPED][part.removeprefix(WRAPPED + ".")] = tensor
    groups = json.loads(metadata["param_groups"])
    for group in groups:
        if isinstance(group.get("betas"), list):
            group["betas"] = tuple(group["betas"])
    torch.save({"state": state, "param_groups": groups}, target)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--algorithm", default="", help="adam, ademamix, momentum, rmsprop, adagrad or lion")
    arguments = parser.parse_args()
    if arguments.source.endswith(".safetensors"):
        to_pickle(arguments.source, arguments.target)
    else:
        to_safetensors(arguments.source, arguments.target, arguments.algorithm)


if __name__ == "__main__":
    main()
