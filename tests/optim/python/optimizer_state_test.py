"""tools/optimizer_state.py: a state dict as bitsandbytes pickles it, to safetensors and back, byte for byte."""

import pathlib
import subprocess
import sys
import tempfile

import torch

WRAPPED = "__bnb_optimizer_quant_state__"


def state_dict():
    eight = {
        "state1": torch.randint(0, 256, (70, 80), dtype=torch.uint8),
        "state2": torch.randint(0, 256, (70, 80), dtype=torch.uint8),
        "qmap1": torch.linspace(-1, 1, 256),
        "qmap2": torch.linspace(0, 1, 256),
        "absmax1": torch.rand(22),
        "absmax2": torch.rand(22),
    }
    full = {"state1": torch.randn(30), "state2": torch.rand(30)}
    group = {"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "alpha": 0.0}
    group |= {"t_alpha": None, "t_beta3": None, "params": [0, 1, 2]}
    return {"state": {0: {"step": 3, WRAPPED: eight}, 2: {"step": 1, WRAPPED: full}}, "param_groups": [group]}


def main(script, *reader):
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        paths = [folder / "a.pt", folder / "b.safetensors", folder / "c.pt"]
        before = state_dict()
        torch.save(before, paths[0])
        for source, target in zip(paths, paths[1:]):
            extra = ["--algorithm", "adam"] if target.suffix == ".safetensors" else []
            subprocess.run([sys.executable, "-B", script, source, target, *extra], check=True)
        after = torch.load(paths[2], weights_only=True)
        assert after["param_groups"] == before["param_groups"], after["param_groups"]
        assert set(after["state"]) == {0, 2}
        for number, state in before["state"].items():
            assert after["state"][number]["step"] == state["step"]
            assert set(after["state"][number][WRAPPED]) == set(state[WRAPPED])
            for part, tensor in state[WRAPPED].items():
                other = after["state"][number][WRAPPED][part]
                assert other.dtype == tensor.dtype and torch.equal(other, tensor), part
        # The C++ side reads the file and continues.
        if reader:
            environment = {"LOWBIT_OPTIMIZER_STATE": str(paths[1])}
            subprocess.run([reader[0], "--gtest_filter=OptimizerState.AConvertedFileContinues"], check=True, env=environment)


if __name__ == "__main__":
    main(*sys.argv[1:])
