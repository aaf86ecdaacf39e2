"""Mixers that another distribution brings, under the entry-point group "lmlab.mixers"."""

import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = """
import torch
from torch import nn


class State:
    nbytes = 0

    def __init__(self, total):
        self.total = total

    def select(self, rows):
        return State(self.total[rows])


class Mean(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x, state=None):
        sums = x.cumsum(1) if state is None else state.total[:, None] + x.cumsum(1)
        if state is not None:
            state.total = sums[:, -1]
        return self.out(sums), state, None

    def init_state(self, batch_size, max_length):
        return State(torch.zeros(batch_size, self.out.in_features, dtype=self.out.weight.dtype))

    def flops_per_token(self, length):
        return 2 * self.out.weight.numel()
"""
PROGRAM = """
import torch
from lmlab.model import Decoder, DecoderConfig, generate
config = DecoderConfig(vocab_size=17, d_model=16, n_layers=2, n_heads=2, d_ff=16, mixer=("attention", "mean"))
model = Decoder(config).double()
assert type(model.blocks[1].mixer).__name__ == "Mean"
ids = torch.arange(12).reshape(2, 6)
state = model.init_state(2)
steps = [model.step(ids[:, i : i + 1], state) for i in range(6)]
assert torch.allclose(model(ids)[:, -1], steps[-1], rtol=0, atol=1e-10)
model.save("saved")
assert torch.equal(Decoder.load("saved")(ids), model(ids))
assert len(generate(model, [[1, 2]], max_new_tokens=3, temperature=0)[0].ids) == 3
try:
    Decoder(DecoderConfig(vocab_size=17, mixer="maen"))
except ValueError as error:
    print(error)
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A distribution as an installer leaves it."""
    (tmp_path / "plugin.py").write_text(PLUGIN)
    told = tmp_path / "plugin-1.dist-info"
    told.mkdir()
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    (told / "entry_points.txt").write_text("[lmlab.mixers]\nmean = plugin:Mean\n")
    return tmp_path


def test_an_installed_mixer_is_known_by_its_name(installed: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(installed)!r})\n{PROGRAM}"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=installed)
    assert ran.returncode == 0, ran.stderr
    assert "known mixers (attention, mean, recurrent, vq), got 'maen'" in ran.stdout
