"""tiny_chat_model.py GOLDEN OUT: a chat model small enough for a test.

The weights are the recorded random Llama (128 tokens); the tokenizer made here has a byte-level vocabulary of just that size:
three special tokens, the printable characters, and merges that fill the rest.
"""

import json
import pathlib
import shutil
import sys

golden, out = map(pathlib.Path, sys.argv[1:3])
shutil.rmtree(out, ignore_errors=True)
shutil.copytree(golden / "hf/base", out)

special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# The byte-level alphabet writes the space and the newline as U+0120 and U+010A.
pieces = ["\u010a", "\u0120"] + [chr(c) for c in range(33, 127)]
merges = [["a", chr(c)] for c in range(ord("a"), ord("z") + 1)] + [["b", "a"], ["b", "b"], ["b", "c"]]
vocabulary = {piece: number for number, piece in enumerate(special + pieces + ["".join(pair) for pair in merges])}
assert len(vocabulary) == 128

byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
tokenizer = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, t in enumerate(special)
    ],
    "normalizer": None,
    "pre_tokenizer": byte_level,
    "post_processor": None,
    "decoder": byte_level,
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
              "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
              "vocab": vocabulary, "merges": merges},
}
template = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
config = {"bos_token": special[1], "eos_token": special[2], "unk_token": special[0], "pad_token": special[2],
          "tokenizer_class": "GPT2Tokenizer", "chat_template": template}
(out / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1))
(out / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
