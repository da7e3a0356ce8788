"""The checkers can fail: each finds a violation that is planted in a small tree, and passes the tree without it."""

import pathlib
import tempfile
import unittest

import include_edges
import kernel_symbols
import readme_blocks
import schemas
import text_rules

LIBRARY = 'TORCH_LIBRARY(lowbit, m) {\n  m.def("double_it(Tensor A) -> Tensor");\n}\n'
KERNELS = "".join(
    'TORCH_LIBRARY_IMPL(lowbit, %s, m) {\n  m.impl("double_it", &double_it);\n}\n' % key for key in ("CPU", "Meta")
)
README = "# Name\n<!-- examples/1_add/main.cpp -->\n```cpp\nint a = 1;\nint b = 2;\n```\n"
CLEAN = {
    "README.md": README,
    "examples/1_add/main.cpp": "int main() {\n  int a = 1;\n  int b = 2;\n}\n",
    "include/lowbit/error.h": "#pragma once\n",
    "include/lowbit/io/file.h": '#include "lowbit/error.h"\n',
    "src/ops/library.cpp": LIBRARY,
    "src/ops/double.cpp": KERNELS,
    "src/llm/model.cpp": '#include "lowbit/io/file.h"\n',
    "tests/ops/double_test.cpp": "// double_it\n",
    "benchmarks/double_bench.cpp": "// double_it\n",
}


class Tree(unittest.TestCase):
    def check(self, checker, changes=None):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder).resolve()
            for name, text in {**CLEAN, **(changes or {})}.items():
                if text is not None:
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    (root / name).write_text(text)
            return checker.violations(root)

    def finds(self, checker, part, changes):
        found = self.check(checker, changes)
        self.assertEqual(len(found), 1, found)
        self.assertIn(part, found[0])

    def test_a_clean_tree_passes(self):
        for checker in (text_rules, include_edges, schemas, readme_blocks):
            self.assertEqual(self.check(checker), [])

    def test_text_rules(self):
        self.finds(text_rules, "501 lines", {"src/io/a.cpp": "\n" * 501})
        self.finds(text_rules, "not ASCII", {"src/io/a.cpp": "// \u00e9\n"})
        self.finds(text_rules, "unfinished", {"src/io/a.cpp": "// TO" + "DO: rest\n"})
        self.finds(text_rules, "workplace", {"docs/a.md": "see /wo" + "rk/x\n"})
        self.finds(text_rules, "skipped", {"tests/a.cpp": "GTEST_" + "SKIP() << reason;\n"})
        self.finds(text_rules, "never prints", {"src/io/a.cpp": "  std::" + "cout << 1;\n"})
        self.finds(text_rules, "named after nothing", {"src/io/utils.h": "\n"})
        self.assertEqual(self.check(text_rules, {"src/cli/a.cpp": "  std::" + "cout << 1;\n"}), [])

    def test_include_edges(self):
        self.finds(include_edges, "must not include llm", {"src/nn/a.cpp": '#include "lowbit/llm/model.h"\n'})
        self.finds(include_edges, "must not see torch", {"src/io/a.cpp": "#include <torch/torch.h>\n"})
        self.finds(include_edges, "must not see torch", {"kernels/ref/a.cpp": "#include <ATen/ATen.h>\n"})
        self.finds(include_edges, "must not see CUDA", {"kernels/ref/a.cpp": "#include <cuda_fp16.h>\n"})
        self.finds(include_edges, "must not include io", {"kernels/cpu/a.cpp": '#include "lowbit/io/file.h"\n'})
        self.finds(include_edges, "must not include nn", {"src/nn/b.h": "\n", "src/ops/a.cpp": '#include "nn/b.h"\n'})
        self.finds(include_edges, "public headers only", {"src/llm/b.h": "\n", "src/cli/a.cpp": '#include "llm/b.h"\n'})
        self.finds(include_edges, "no room", {"src/attic/a.cpp": "\n"})

    def test_schemas(self):
        self.finds(schemas, "no Meta kernel", {"src/ops/double.cpp": KERNELS.replace("Meta", "Autograd")})
        self.finds(schemas, "no CUDA kernel", {"src/ops/fourbit_cuda.cpp": "\n"})
        self.finds(schemas, "no test names it", {"tests/ops/double_test.cpp": "// double_it_not\n"})
        self.finds(schemas, "no benchmark names it", {"benchmarks/double_bench.cpp": None})
        self.finds(schemas, "no schema was found", {"src/ops/library.cpp": "\n"})
        self.finds(schemas, "without a schema", {"src/ops/b.cpp": KERNELS.replace("double_it", "halve_it")})

    def test_readme_blocks(self):
        self.finds(readme_blocks, "differs", {"README.md": README.replace("b = 2", "b = 3")})
        self.finds(readme_blocks, "does not show", {"examples/2_other/main.cpp": "int main() {}\n"})
        self.finds(readme_blocks, "names no file", {"README.md": README + "```cmake\nproject(x)\n```\n"})
        self.finds(readme_blocks, "there is no", {"README.md": README + "<!-- examples/1_add/a.cpp -->\n```cpp\nint c;\n```\n"})

    def test_kernel_symbols(self):
        clean = "lib.a:a.o:                  U memcpy\nlib.a:a.o:0000000000000000 T _Z1fv\nlib.a:b.o:    U _Z1fv\n"
        self.assertEqual(kernel_symbols.violations(clean), [])
        for symbol in ("_Znwm", "__cxa_throw", "malloc", "printf", "getenv", "cudaMalloc", "cudaStreamSynchronize", "pthread_mutex_lock"):
            found = kernel_symbols.violations(clean + f"lib.a:b.o:                  U {symbol}\n")
            self.assertEqual(found, [f"lib.a:b.o: kernels must not call {symbol}"])
        self.assertEqual(len(kernel_symbols.violations("")), 1)


if __name__ == "__main__":
    unittest.main()
