"""Every schema of src/ops/library.cpp has its kernels, a test that names it and a benchmark that names it."""

import re

import rules

SCHEMA = re.compile(r'\bdef\(\s*"([a-z0-9_]+)(\.[a-z]+)?\(')
BLOCK = re.compile(r"TORCH_LIBRARY_IMPL\(\s*lowbit\s*,\s*(\w+)\s*,\s*\w+\s*\)\s*\{(.*?)\n\}", re.DOTALL)
IMPL = re.compile(r'\bimpl\(\s*"([a-z0-9_]+)(\.[a-z]+)?"')
COMPOSITE = {"CompositeImplicitAutograd", "CompositeExplicitAutograd"}


def text(root, folders, suffixes):
    return "\n".join(path.read_text() for path in rules.files(root, folders, suffixes))


def violations(root):
    library = (root / "src/ops/library.cpp").read_text()
    schemas = [name + (overload or "") for name, overload in SCHEMA.findall(library)]
    if not schemas:
        return ["src/ops/library.cpp: no schema was found"]
    kernels = {}
    for key, body in BLOCK.findall(text(root, ["src/ops"], {".cpp"})):
        for name, overload in IMPL.findall(body):
            kernels.setdefault(name + (overload or ""), set()).add(key)
    tests = text(root, ["tests"], {".cpp", ".py"})
    benchmarks = text(root, ["benchmarks"], {".cpp"})
    wanted = ["CPU", "Meta"] + (["CUDA"] if (root / "src/ops/fourbit_cuda.cpp").exists() else [])

    found = []
    for schema in schemas:
        have = kernels.get(schema, set())
        if not have & COMPOSITE:
            found += [f"{schema}: no {key} kernel" for key in wanted if key not in have]
        name = schema.split(".")[0]
        if not re.search(rf"\b{name}\b", tests):
            found.append(f"{schema}: no test names it")
        if not re.search(rf"\b{name}\b", benchmarks):
            found.append(f"{schema}: no benchmark names it")
    found += [f"{name}: a kernel without a schema" for name in sorted(set(kernels) - set(schemas))]
    return found


if __name__ == "__main__":
    rules.finish(violations(rules.root_argument()))
