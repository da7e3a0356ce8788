"""Writes gguf.gguf and gguf.safetensors (what it decodes to) with the Python packages gguf, numpy and safetensors.

Blocks are random bytes (their scales are made finite), so that every bit of every layout takes part.
"""
import numpy as np
import gguf
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

ROWS, COLUMNS = 3, 512
HEADS, HEAD_DIM = 4, 64
# Where the half-precision scales of a block are.
SCALES = {
    Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0],
    Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}

random = np.random.default_rng(20250611)


def random_blocks(kind):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (ROWS, COLUMNS // block, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scale = (random.standard_normal(data.shape[:2]) * 10.0 ** random.integers(-6, 3, data.shape[:2])).astype(np.float16)
        data[:, :, at:at + 2] = scale[..., None].view(np.uint8)
    return data.reshape(ROWS, -1)


def llama3_factors(factor=32.0, low=1.0, high=4.0, context=8192, theta=500000.0):
    frequencies = 1.0 / theta ** (np.arange(0, HEAD_DIM, 2, dtype=np.float64) / HEAD_DIM)
    factors = []
    for frequency in frequencies:
        wavelength = 2 * np.pi / frequency
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1.0 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


writer = gguf.GGUFWriter("gguf.gguf", "llama")
writer.add_context_length(2048)
writer.add_embedding_length(HEADS * HEAD_DIM)
writer.add_block_count(2)
writer.add_feed_forward_length(640)
writer.add_head_count(HEADS)
writer.add_head_count_kv(2)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_freq_base(500000.0)
writer.add_rope_dimension_count(HEAD_DIM)
writer.add_token_list(["<s>", "</s>", "a", "\u00e9", "\U0001f600"])
writer.add_token_types([3, 3, 1, 1, 1])
writer.add_token_scores([0.0, -1.0, -2.5, 1e-3, 3e38])
writer.add_bos_token_id(0)
writer.add_eos_token_id(1)
for name, value in (("uint8", 200), ("int8", -100), ("uint16", 60000), ("int16", -30000), ("uint32", 4000000000),
                    ("int32", -2000000000), ("uint64", 2**64 - 1), ("int64", -2**63), ("float32", 0.1), ("float64", 0.1)):
    getattr(writer, "add_" + name)("kinds." + name, value)
writer.add_bool("kinds.bool", True)
writer.add_string("kinds.string", "caf\u00e9")
writer.add_array("kinds.bools", [True, False])
writer.add_array("kinds.strings", ["x", "", "yz"])

expected = {}
values = (random.standard_normal((ROWS, COLUMNS)) * 100).astype(np.float32)
values[0, :8] = [0.0, -0.0, np.inf, -np.inf, 6e-8, -3e-5, 65504.0, 1e-40]
half = values.astype(np.float16)
half[1, :2] = np.array([0x0001, 0x83FF], dtype=np.uint16).view(np.float16)
writer.add_tensor("F32", values)
writer.add_tensor("F16", half)
expected["F32"] = values
expected["F16"] = half.astype(np.float32)
brain = gguf.quantize(values, Type.BF16)
writer.add_tensor("BF16", brain, raw_dtype=Type.BF16)
expected["BF16"] = gguf.dequantize(brain, Type.BF16)
for kind in SCALES:
    data = random_blocks(kind)
    writer.add_tensor(kind.name, data, raw_dtype=kind)
    expected[kind.name] = gguf.dequantize(data, kind)
writer.add_tensor("token_embd.weight", random.standard_normal((5, 32)).astype(np.float32))
writer.add_tensor("rope_freqs.weight", llama3_factors())
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
save_file({name: np.ascontiguousarray(value, dtype=np.float32) for name, value in expected.items()}, "gguf.safetensors")
