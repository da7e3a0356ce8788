"""The operator library from Python: opcheck on every schema, torch.compile, torch.export, gradients.

Usage: ops_test.py LIBLOWBIT [unittest arguments]
"""

import os
import random
import sys
import unittest

import torch

SEED = int(os.environ.get("LOWBIT_TEST_SEED", random.SystemRandom().randrange(2**31)))
ops = torch.ops.lowbit


def quantized(n=48, k=64, nested=False, quant_type="nf4"):
    """packed weight, its op arguments after `input` (without bias), and the dequantized weight."""
    packed, absmax = ops.quantize_4bit(torch.randn(n, k), 64, quant_type, torch.uint8)
    args, nested_args = (packed, [n, k], absmax, 64, quant_type), {}
    if nested:
        code = torch.linspace(-1, 1, 256)
        offset = absmax.mean()
        codes, second = ops.quantize_blockwise(absmax - offset, code, 256)
        absmax = ops.dequantize_blockwise(codes, second, code, 256, torch.float32) + offset
        args = (packed, [n, k], second, 64, quant_type)
        nested_args = dict(absmax_8bit=codes, absmax_code=code, absmax_offset=offset)
    weight = ops.dequantize_4bit(packed, absmax, 64, quant_type, [n, k], torch.float32)
    return args, nested_args, weight


def samples():
    """schema name -> list of (args, kwargs)."""
    w, nested_w = quantized(), quantized(nested=True)
    (packed, shape, absmax, blocksize, quant_type), _, _ = w
    x = torch.randn(2, 3, 64)
    bias = torch.randn(48)
    experts, offs = [4, 12, 64], torch.tensor([3, 3, 8, 9], dtype=torch.int32)
    code8 = torch.linspace(-1, 1, 256)
    codes, absmax8 = ops.quantize_blockwise(x, code8, 64)
    q, stats, _ = ops.int8_vectorwise_quant(x, 0.0)
    CB, SCB, _ = ops.int8_vectorwise_quant(torch.randn(48, 64), 0.0)
    i32 = ops.int8_linear_matmul(q, CB)
    ids = torch.randint(0, 48, (2, 5))
    x2 = torch.randn(5, 64)
    q2, stats2, columns = ops.int8_vectorwise_quant(x2, 2.0)
    grad_x, grad_bias = x.clone().requires_grad_(), bias.clone().requires_grad_()
    code4 = torch.linspace(-1, 1, 16)
    return {
        # Not a float storage dtype: bytes viewed as floats can be NaN, which compares unequal to itself.
        "quantize_4bit": [((x, 64, "nf4", torch.uint8), {}), ((x.bfloat16(), 32, "fp4", torch.int8), {})],
        "dequantize_4bit": [((packed, absmax, 64, "nf4", shape, torch.bfloat16), {})],
        "dequantize_4bit.out": [((packed, absmax, 64, "nf4", shape, torch.float32), {"out": torch.empty(48, 64)})],
        "gemm_4bit": [((x, *w[0], bias), {}), ((x, *nested_w[0]), nested_w[1])],
        "gemv_4bit": [((x, packed, shape, absmax, code4, 64), {})],
        "gemv_4bit.out": [((x, packed, shape, absmax, code4, 64), {"out": torch.empty(2, 3, 48)})],
        "linear_4bit": [
            ((grad_x, *w[0], grad_bias), {}),
            ((grad_x, *nested_w[0]), nested_w[1]),
            ((grad_x.detach().bfloat16().requires_grad_(), *w[0], grad_bias), {}),
        ],
        "linear_4bit_backward_input": [((torch.randn(2, 3, 48, requires_grad=True), *w[0]), {})],
        "grouped_mm_4bit": [
            ((torch.randn(10, 64, requires_grad=True), packed, experts, absmax, blocksize, quant_type, offs), {}),
            ((torch.randn(10, 64), nested_w[0][0], experts, *nested_w[0][2:], offs), nested_w[1]),
        ],
        "grouped_mm_4bit_backward_input": [
            ((torch.randn(10, 12, requires_grad=True), packed, experts, absmax, blocksize, quant_type, offs), {})
        ],
        "embedding_4bit": [((ids, *w[0], torch.float16), {}), ((ids, *nested_w[0], torch.float32), nested_w[1])],
        "quantize_blockwise": [((x, code8, 64), {})],
        "dequantize_blockwise": [((codes, absmax8, code8, 64, torch.float16), {})],
        "dequantize_blockwise.out": [
            ((codes, absmax8, code8, 64, torch.float32), {"out": torch.empty(2, 3, 64)})
        ],
        "int8_rowwise_quant": [((x, 0.0), {}), ((x, 2.0), {})],
        "int8_colwise_quant": [((x, 2.0), {})],
        "int8_vectorwise_quant": [((x, 0.0), {})],
        "int8_double_quant": [((x, 0.0), {})],
        "int8_vectorwise_dequant": [((q, stats), {})],
        "int8_linear_matmul": [((q, CB), {})],
        "int8_linear_matmul.out": [((q, CB), {"out": torch.empty(2, 3, 48, dtype=torch.int32)})],
        "int8_mm_dequant": [((i32, stats, SCB), {}), ((i32, stats, SCB, torch.float32, bias), {})],
        "int8_scaled_mm": [((q, CB, stats, SCB, bias, torch.bfloat16), {})],
        "int8_mixed_scaled_mm": [
            ((x2, q2, CB, stats2, SCB, columns, bias), {}),
            ((x2, q2, CB, stats2, SCB), {}),
        ],
        "linear_8bit": [((grad_x, CB, SCB, grad_bias, 2.0), {}), ((grad_x, CB, SCB), {})],
        "linear_8bit_weight_only": [((grad_x, CB, SCB, grad_bias), {})],
        "linear_8bit_backward_input": [((torch.randn(2, 3, 48, requires_grad=True), CB, SCB), {})],
        "embedding_8bit": [((ids, CB, SCB, torch.bfloat16), {})],
        **optimizer_samples(),
    }


def optimizer_samples():
    p, g = torch.randn(600), torch.randn(600)
    signed, unsigned = torch.linspace(-1, 1, 256), torch.linspace(0, 1, 256)
    floats = lambda: [torch.zeros(600), torch.zeros(600)]
    codes = lambda: [torch.zeros(600, dtype=torch.uint8) for _ in range(2)]
    absmax = lambda: [torch.zeros(3), torch.zeros(3)]
    betas = (0.9, 0.999, 0.0, 0.0)  # beta3 and alpha last
    pair, grads = [p.clone(), p.clone()], [g.clone(), g.clone()]
    lr_value = torch.full((1,), 1e-3)
    return {
        "optimizer_update_32bit": [
            (("adam", g, p, *floats(), None, 0.0, 0.0, *betas, 1e-8, 0.01, 1, 1e-3, 1.0), {}),
            (("lars", g, p, torch.zeros(600), None, torch.zeros(1), 0.02, 3.0, *betas, 0.0, 0.0, 1, 1e-3, 1.0), {}),
        ],
        "optimizer_update_8bit_blockwise": [
            (("adam", g, p, *codes(), *betas, 1e-8, 1, 1e-3, signed, unsigned, *absmax(), 0.01, 1.0), {}),
            (("lion", g, p, codes()[0], None, *betas, 0.0, 1, 1e-3, signed, None, absmax()[0], None, 0.0, 1.0), {}),
        ],
        "optimizer_step_multi_tensor_32bit": [
            (("adam", grads, pair, floats(), floats(), [], 0.0, *betas, 1e-8, 0.01, 1, 1e-3), {"lr_value": lr_value}),
        ],
        "optimizer_step_multi_tensor_8bit": [
            (
                ("adam", grads, pair, codes(), codes(), signed, unsigned, absmax(), absmax(), [], 0.0)
                + (*betas, 1e-8, 0.01, 1, 1e-3),
                {},
            ),
        ],
    }


def overload(name):
    stem, _, suffix = name.partition(".")
    return getattr(getattr(ops, stem), suffix or "default")


class OpsTest(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(SEED)
        torch._dynamo.reset()

    def test_every_schema_passes_opcheck(self):
        cases = samples()
        schemas = {
            name.removeprefix("lowbit::").removesuffix(".")
            for name in torch._C._dispatch_get_all_op_names()
            if name.startswith("lowbit::")
        }
        self.assertEqual(schemas, set(cases))
        for name, calls in cases.items():
            for args, kwargs in calls:
                with self.subTest(name):
                    torch.library.opcheck(overload(name), args, kwargs)

    def test_outliers_trace_as_data_dependent_sizes(self):
        x = torch.randn(5, 64)
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            compiled = torch.compile(lambda t: ops.int8_vectorwise_quant(t, 2.0), backend="aot_eager", fullgraph=True)
            for got, want in zip(compiled(x), ops.int8_vectorwise_quant(x, 2.0)):
                torch.testing.assert_close(got, want, rtol=0, atol=0)

    def test_compile_with_dynamic_batch_and_gradients(self):
        args, nested, weight = quantized(nested=True)
        CB, SCB, _ = ops.int8_vectorwise_quant(weight, 0.0)

        def four(x, b):
            return torch.nn.functional.silu(ops.linear_4bit(x, *args, b, **nested))

        def eight(x, b):
            return torch.nn.functional.silu(ops.linear_8bit(x, CB, SCB, b, 6.0))

        for f in (four, eight):
            compiled = torch.compile(f, backend="aot_eager", fullgraph=True, dynamic=True)
            for rows in (1, 3, 7):
                results = []
                x, b = torch.randn(rows, 64), torch.randn(48)
                for g in (f, compiled):
                    leaf, bias = x.clone().requires_grad_(), b.clone().requires_grad_()
                    y = g(leaf, bias)
                    y.square().sum().backward()
                    results.append((y.detach(), leaf.grad, bias.grad))
                for got, want in zip(*results):
                    torch.testing.assert_close(got, want)

    def test_compile_quantizers(self):
        code = torch.linspace(-1, 1, 256)

        def f(x):
            packed, absmax = ops.quantize_4bit(x, 64, "nf4", torch.uint8)
            codes, scales = ops.quantize_blockwise(absmax, code, 256)
            back = ops.dequantize_blockwise(codes, scales, code, 256, torch.float32)
            return ops.dequantize_4bit(packed, back, 64, "nf4", list(x.shape), x.dtype)

        compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
        for x in (torch.randn(33, 40), torch.randn(7, 5).bfloat16()):
            torch.testing.assert_close(compiled(x), f(x), rtol=0, atol=0)

    @unittest.skipUnless(os.environ.get("LOWBIT_TEST_INDUCTOR"), "needs a compiler: set LOWBIT_TEST_INDUCTOR")
    def test_inductor(self):
        args, nested, _ = quantized(nested=True)
        f = lambda x: torch.nn.functional.gelu(ops.linear_4bit(x * 2, *args, **nested)) + 1
        x = torch.randn(4, 64)
        torch.testing.assert_close(torch.compile(f, fullgraph=True)(x), f(x))

    def test_export(self):
        args, nested, weight = quantized(nested=True)
        packed, shape, absmax, blocksize, quant_type = args

        class Layer(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("weight", packed)
                self.register_buffer("absmax", absmax)
                for name, tensor in nested.items():
                    self.register_buffer(name, tensor)

            def forward(self, x):
                statistics = {name: getattr(self, name) for name in nested}
                return ops.linear_4bit(x, self.weight, shape, self.absmax, blocksize, quant_type, **statistics)

        x = torch.randn(3, 64)
        rows = torch.export.Dim("rows", min=1, max=1024)
        program = torch.export.export(Layer(), (x,), dynamic_shapes={"x": {0: rows}})
        self.assertIn("lowbit.linear_4bit", program.graph_module.code)
        for count in (3, 8):
            y = torch.randn(count, 64)
            torch.testing.assert_close(program.module()(y), Layer()(y))

    def test_gradients_against_explicit_dequantization(self):
        for nested in (False, True):
            args, extra, weight = quantized(nested=nested)
            x = torch.randn(2, 3, 64, requires_grad=True)
            bias = torch.randn(48, requires_grad=True)
            grad = torch.randn(2, 3, 48)
            got = torch.autograd.grad(ops.linear_4bit(x, *args, bias, **extra), (x, bias), grad)
            want = torch.autograd.grad(torch.nn.functional.linear(x, weight, bias), (x, bias), grad)
            for g, w in zip(got, want):
                torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-4)

    def test_vmap_and_functional_gradients(self):
        args, _, weight = quantized()
        x = torch.randn(4, 64)
        jacobian = torch.autograd.functional.jacobian(lambda t: ops.linear_4bit(t, *args), x[0])
        torch.testing.assert_close(jacobian, weight, rtol=1e-5, atol=1e-5)

    def test_errors_name_the_argument(self):
        args, _, _ = quantized()
        with self.assertRaisesRegex(RuntimeError, r"lowbit::linear_4bit: `input` must be \[\.\.\., 64\], got shape"):
            ops.linear_4bit(torch.randn(2, 65), *args)
        with self.assertRaisesRegex(RuntimeError, r"lowbit::linear_4bit: `input` must be \[\.\.\., 64\]"):
            torch.compile(lambda t: ops.linear_4bit(t, *args), backend="aot_eager")(torch.randn(2, 65))


if __name__ == "__main__":
    torch.ops.load_library(sys.argv.pop(1))
    print(f"LOWBIT_TEST_SEED={SEED}")
    unittest.main()
