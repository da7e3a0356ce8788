#!/usr/bin/env python3
"""Makes the tokenizer fixtures: small tokenizers trained here, and what Python's `tokenizers` gives for strings.json.

Needs: tokenizers, jinja2 (of transformers); with --smollm2 DIR also ids of the SmolLM2 tokenizer in DIR/tokenizer.json.
Usage: make_fixture.py [--smollm2 DIR]
"""
import glob
import json
import os
import random
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

HERE = os.path.dirname(os.path.abspath(__file__))
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"]
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")

MORE_TEXT = [
    "Grüße aus Köln, schöne Straße, Übung macht den Meister. Ça va déjà très bien à l'été où naïve façade.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "我能吞下玻璃而不伤身体。今天天气很好,我们去公园散步吧。東京は日本の首都です。こんにちは世界。안녕하세요 세계",
    "שלום עולם, מה שלומך? مرحبا بالعالم كيف حالك اليوم हिन्दी में नमस्ते दुनिया ไทยสวัสดีชาวโลก",
    "def main(argc: int, argv: list[str]) -> int:\n    for i in range(10):\n        print(f\"{i:02d}\")\n    return 0\n",
    "for (int i = 0; i < n; ++i) { sum += x[i] * y[i]; }  // dot product\n#include <vector>\n\tstd::vector<int> v;\n",
    "I'm sure they'll say we've done it; you'd think he's right, but it isn't, don't, can't, I'd, we're.",
    "😀 😃 👍🏽 👨‍👩‍👧‍👦 🇩🇪 🏳️‍🌈 ☕ ❤️ ✨ 🚀 emoji",
    "0 1 12 123 1234 12345 3.14159 1,000,000 0xFF 1e-5 2026-11-23 10:45:00 ½ ² ٣ ४ Ⅷ",
]


def corpus():
    for path in sorted(glob.glob("/usr/share/common-licenses/*")):
        if not os.path.islink(path):
            yield open(path, encoding="utf-8", errors="replace").read()
    for _ in range(40):
        yield from MORE_TEXT


def byte_level():
    """SmolLM2's layout: digits one by one, GPT-2's expression, special tokens first."""
    tok = Tokenizer(BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)])
    tok.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    tok.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=2200, special_tokens=SPECIALS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tok


def split_byte_level(base, pattern, normalizer=None, ignore_merges=False, bos=None):
    """Llama 3's and Qwen 2's layout over the vocabulary of `base`."""
    spec = json.loads(base.to_str())
    spec["model"]["ignore_merges"] = ignore_merges
    # A token that no merge reaches: only ignore_merges finds it.
    spec["model"]["vocab"]["Ġlicensable"] = len(spec["model"]["vocab"])
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}
    if normalizer:
        spec["normalizer"] = {"type": normalizer}
    tok = Tokenizer.from_str(json.dumps(spec))
    # Flags of every sort; these come behind the vocabulary.
    tok.add_tokens([AddedToken("<tool>", special=False, normalized=False, lstrip=True, rstrip=True),
                    AddedToken("word", special=False, normalized=False, single_word=True),
                    AddedToken("Résumé", special=False, normalized=True),
                    AddedToken("<|im", special=True, normalized=False),
                    AddedToken("<pad>", special=True, normalized=False, rstrip=True)])
    if bos:
        tok.post_processor = processors.Sequence([
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1",
                                          special_tokens=[(bos, tok.token_to_id(bos))])])
    return tok


def sentencepiece_like(metaspace):
    """Llama 2's and Mistral's layout: U+2581 for spaces, byte fallback, <unk> <s> </s> and the 256 bytes first."""
    trained = Tokenizer(BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("▁+[^▁]*"), "isolated")
    trained.train_from_iterator(corpus(), trainers.BpeTrainer(
        vocab_size=1200, min_frequency=2, limit_alphabet=110, special_tokens=["<unk>"], show_progress=False))
    old = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    pieces += [p for p in sorted(old["vocab"], key=old["vocab"].get) if p not in pieces]
    spec = json.loads(trained.to_str())
    spec["model"] = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                     "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
                     "vocab": {p: i for i, p in enumerate(pieces)}, "merges": old["merges"]}
    spec["added_tokens"] = [{"id": i, "content": pieces[i], "single_word": False, "lstrip": False, "rstrip": False,
                             "normalized": False, "special": True} for i in range(3)]
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                 {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    tail = [{"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    spec["decoder"] = {"type": "Sequence", "decoders": [replace] + tail}
    if metaspace:
        spec["normalizer"] = None
        spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    else:
        spec["normalizer"] = {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
        spec["pre_tokenizer"] = None
    return Tokenizer.from_str(json.dumps(spec))


def strings():
    random.seed(20261123)
    out = ["", " ", "  ", "   ", "\n", "\n\n", "\t", " \n", "\n ", "\r\n", " \t \n  x", "a", " a", "a ", "  a  b   c    d     e",
           "Hello world", " Hello world", "Hello  world", "hello\nworld", "hello \n world", "hello\r\n\r\nworld  \n\n\n  end   ",
           "\u00a0nbsp\u00a0\u00a0x", "zero\u200bwidth\u200djoin\ufeffbom", "em\u2003space\u3000ideographic", "\u180emongolian \u180e sep",
           "next\u0085line", "line\u2028sep\u2029para", "\x00nul\x01ctl\x7f", "\u0301alone", "e\u0301 é e\u0301\u0323 ệ", "Å Å Å",
           "ﬁ ﬂ ½ ① ２ Ａ ㎏", "한국어 한국어", "İstanbul ıI", "ẞß ſs 'ſ K Å", "'S 'T 'RE 'Ve 'lL 'D 'M I'M DON'T",
           "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚", "\U00010348 \U0001f600", "\ufffd replacement", "\uffff \U0010ffff",
           "<|im_start|>user\nHi<|im_end|>\n", "<|im_start|> x <|im_end|>", "<|im_start", "<|im_start|", "x<|endoftext|>y",
           "<|endoftext|><|endoftext|>", " <|im_end|> ", "<s>hello</s>", "<s> hello </s> there", "<unk>", "a<unk>b", "<0x41>", "<0xE2><0x96><0x81>",
           "▁", "▁▁", "a▁b", "▁a", " ▁ a", "a <tool> b", "a\n\t<tool>   b", "<tool><tool>", "  <tool>", "word", "words", "sword", "a word.", "word_", "(word)",
           "wordéword", "Résumé", "Re\u0301sume\u0301", "a Résumé b", "<pad>  x", "<|im<|im_start|>", "licensable", " licensable", "the licensable",
           "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "=" * 80, "-" * 33, "#" * 7 + " x",
           "abc123def", "123", "1234567890", " 1", "  12", "a1b22c333", "٣٤٥ ४५६ Ⅷ ¾ ²", "3.14e-10", "$1,234.56", "100%", "C++20", "x86_64",
           "https://example.org/a?b=c&d=%20#frag", "mail@example.org", "C:\\path\\to\\file.txt", "a_b_c__d", "camelCaseIdentifier", "SCREAMING_SNAKE",
           "{\"key\": [1, 2, 3], \"s\": \"\\n\"}", "<div class=\"x\">text</div>", "if (a && b || !c) { return; }", "x = y ** 2 // 3 % 4",
           "    indented\n        more\n\ttab\n", "\n\n\n\n", "...", "?!", "—–-", "“quotes” ‘single’", "¿Qué? ¡Sí!", "it's, it’s", "'''", "''s",
           "日本語テキスト", "日本語 と English 混ぜる", "中文，标点。", "한글 텍스트", "ไทย ภาษา", "हिन्दी क्षत्रिय", "தமிழ்", "עברית RTL text", "العربية مع English",
           "ﷺ", "\u202eRTL override\u202c", "नि", "👨‍👩‍👧‍👦", "👍🏽👍🏿", "🇩🇪🇫🇷", "🏳️‍🌈", "a😀b", "😀😀😀", "☕️", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!"]
    out += MORE_TEXT
    text = "".join(open(p, encoding="utf-8", errors="replace").read()
                   for p in sorted(glob.glob("/usr/share/common-licenses/*")) if not os.path.islink(p))
    for _ in range(60):
        at = random.randrange(len(text) - 200)
        out.append(text[at:at + random.randrange(1, 200)])
    alphabets = ["ab \n", " \t\n\r\u00a0\u3000", "abc 123 '", "áéíóúñ çß Ωд", "漢字かなカナ ", "😀👍🏽\u200d❤\ufe0f ", "()[]{}<>|_-=+*/\\ \n",
                 "<|im_startend>word ", "\u0301\u0302ea \u0327", "אבג ابج 12", "\u2581 ab", "'sStT rRdDlL"]
    for i in range(80):
        out.append("".join(random.choice(alphabets[i % len(alphabets)]) for _ in range(random.randrange(1, 40))))
    pools = [(0x20, 0x7f), (0xa0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xe00), (0x2000, 0x2070),
             (0x3040, 0x3100), (0x4e00, 0x5000), (0xac00, 0xac80), (0x1f300, 0x1f650)]
    for _ in range(60):
        out.append("".join(chr(random.randrange(*random.choice(pools))) for _ in range(random.randrange(1, 30))))
    return out


def expectation(tok, texts):
    rows = []
    for text in texts:
        ids = tok.encode(text, add_special_tokens=False).ids
        rows.append({"ids": ids, "with_special": tok.encode(text).ids, "decoded": tok.decode(ids, skip_special_tokens=False),
                     "skipped": tok.decode(ids, skip_special_tokens=True)})
    return rows


def random_decodes(tok, seed):
    random.seed(seed)
    size = tok.get_vocab_size()
    rows = []
    for _ in range(60):
        ids = [random.randrange(min(size, 400) if random.random() < 0.5 else size) for _ in range(random.randrange(0, 12))]
        rows.append({"ids": ids, "decoded": tok.decode(ids, skip_special_tokens=False),
                     "skipped": tok.decode(ids, skip_special_tokens=True)})
    return rows


def compact(tok):
    """tokenizer.json in one line, merges as strings: a third of the size."""
    spec = json.loads(tok.to_str())
    spec["model"]["merges"] = [" ".join(m) for m in spec["model"]["merges"]]
    return json.dumps(spec, ensure_ascii=False, separators=(",", ":"))


def write(name, text):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as f:
        f.write(text + "\n")


def main():
    texts = strings()
    write("strings.json", json.dumps(texts, ensure_ascii=True, indent=0))
    base = byte_level()
    made = {"byte_level": base,
            "llama3_like": split_byte_level(base, LLAMA3, ignore_merges=True, bos="<|endoftext|>"),
            "qwen2_like": split_byte_level(base, QWEN2, normalizer="NFC"),
            "sentencepiece_like": sentencepiece_like(False),
            "metaspace_like": sentencepiece_like(True)}
    for name, tok in made.items():
        write(f"{name}.tokenizer.json", compact(tok))
        tok = Tokenizer.from_file(os.path.join(HERE, f"{name}.tokenizer.json"))
        write(f"{name}.expected.json", json.dumps(
            {"strings": expectation(tok, texts), "decodes": random_decodes(tok, name)}, ensure_ascii=True, separators=(",", ":")))
    if "--smollm2" in sys.argv:
        tok = Tokenizer.from_file(os.path.join(sys.argv[sys.argv.index("--smollm2") + 1], "tokenizer.json"))
        write("smollm2.expected.json", json.dumps([tok.encode(t, add_special_tokens=False).ids for t in texts],
                                                  separators=(",", ":")))


if __name__ == "__main__":
    main()
