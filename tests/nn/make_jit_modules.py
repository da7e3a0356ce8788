"""Writes tests/golden/jit/{scripted,traced}.pt: small modules as Python saves them, and their outputs.

Each archive holds the module (random weights, seed 0), and as attributes an input and the output in float.
"""

import pathlib
import sys
import zipfile

import torch


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(20, 32)
        self.up = torch.nn.Linear(32, 64)
        self.down = torch.nn.Linear(64, 32, bias=False)
        self.norm = torch.nn.LayerNorm(32)

    def forward(self, ids):
        x = self.embed(ids)
        return self.norm(x + self.down(torch.nn.functional.silu(self.up(x))))


def without_debug_files(path):
    """Drops the records of where the sources lay on the machine that wrote them."""
    with zipfile.ZipFile(path) as archive:
        entries = [(item, archive.read(item)) for item in archive.infolist() if not item.filename.endswith(".debug_pkl")]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for item, data in entries:
            archive.writestr(zipfile.ZipInfo(item.filename), data)


def main(folder):
    torch.manual_seed(0)
    ids = torch.randint(0, 20, (2, 5))
    block = Block().eval()
    expected = block(ids).detach()
    for name, module in {"scripted": torch.jit.script(block), "traced": torch.jit.trace(block, ids)}.items():
        module._c._register_attribute("example_input", torch._C.TensorType.get(), ids)
        module._c._register_attribute("example_output", torch._C.TensorType.get(), expected)
        path = folder / f"{name}.pt"
        torch.jit.save(module, str(path))
        without_debug_files(path)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
