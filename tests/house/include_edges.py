"""Include arrows only go down.

kernels sees only itself. io and text see neither torch nor CUDA. In the rest:
ops <- tensor <- nn, optim <- llm <- train <- cli. The program (cli) and the examples use public headers only.
"""

import re

import rules

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
TORCH = re.compile(r"^(torch|ATen|c10|caffe2)/")
CUDA = re.compile(r"^(cuda|cublas|curand|cusparse|nvml|nvtx)\w*(\.h|/)|^c10/cuda/|^ATen/cuda/")

# What a room may include, besides itself and the standard library.
BELOW = {
    "base": set(),
    "kernels": set(),
    "io": {"base"},
    "text": {"base", "io"},
    "ops": {"base", "kernels", "io"},
}
BELOW["tensor"] = BELOW["ops"] | {"ops"}
BELOW["nn"] = BELOW["tensor"] | {"tensor"}
BELOW["optim"] = BELOW["nn"]
BELOW["llm"] = BELOW["nn"] | {"nn", "optim", "text"}
BELOW["train"] = BELOW["llm"] | {"llm"}
BELOW["cli"] = BELOW["train"] | {"train", "all"}
BELOW["all"] = BELOW["train"] | {"train"}
BELOW["examples"] = BELOW["cli"]
TORCH_FREE = {"base", "kernels", "io", "text"}

# Rooms of the headers that stand directly in include/lowbit.
TOP = {
    "error.h": "base",
    "types.h": "base",
    "version.h": "base",
    "cuda_info.h": "ops",
    "functional.h": "ops",
    "quant_state.h": "ops",
    "quantized_tensor.h": "tensor",
    "quantize.h": "nn",
    "lowbit.h": "all",
}


def public_room(include):
    """Room of <lowbit/...>; None when it is not one of ours."""
    parts = include.split("/")
    if parts[0] != "lowbit":
        return None
    return parts[1] if len(parts) > 2 else TOP.get(parts[1], "?")


def room_of(name):
    """Room of a file, by its path in the project."""
    parts = name.parts
    if parts[0] in ("kernels", "examples"):
        return parts[0]
    if parts[0] == "src":
        return parts[1]
    return public_room("/".join(parts[1:])) if parts[0] == "include" else None


def private_room(include, path, root):
    """Room of a private header: beside the file, below src, or below kernels."""
    for base in (path.parent, root / "src", root / "kernels"):
        target = (base / include).resolve()
        if target.is_file() and root in target.parents:
            return room_of(target.relative_to(root))
    return None


def violations(root):
    found = []
    for path in rules.files(root, folders=["include", "kernels", "src", "examples"]):
        name = path.relative_to(root)
        room = room_of(name)
        if room not in BELOW:
            found.append(f"{name}: stands in no room that include_edges.py knows")
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            quote, include = match.groups()
            where = f"{name}:{number}: {room}"
            if TORCH.match(include) and room in TORCH_FREE:
                found.append(f"{where} must not see torch: {include}")
            if CUDA.match(include) and room in TORCH_FREE and name.parts[:2] != ("kernels", "cuda"):
                found.append(f"{where} must not see CUDA: {include}")
            other = public_room(include)
            private = other is None and quote == '"'
            if private:
                other = private_room(include, path, root)
            if other is None or other == room:
                continue
            if other not in BELOW[room]:
                found.append(f"{where} must not include {other}: {include}")
            elif private and room in ("cli", "examples"):
                found.append(f"{where} must use public headers only: {include}")
    return found


if __name__ == "__main__":
    rules.finish(violations(rules.root_argument()))
