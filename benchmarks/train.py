"""`lmlab bench train`: a whole training step beside the plain GPT that many start from."""

from __future__ import annotations

import math
import multiprocessing
import resource
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmlab.lab.bench import Row, benchmark, compare
from lmlab.losses import LinearLoss
from lmlab.model import Decoder, DecoderConfig
from lmlab.train import TokenFile, TrainConfig, build_optimizer
from lmlab.train.objective import Objective, autocast
from lmlab.train.precision import cpu_has_bfloat16
from lmlab.train.resume import save_checkpoint


class RivalAttention(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attend = nn.Linear(d, 3 * d, bias=False)
        self.project = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.attend(x).split(d, dim=2)
        q, k, v = (y.view(b, t, self.heads, d // self.heads).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.project(y.transpose(1, 2).contiguous().view(b, t, d))


class RivalBlock(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d, bias=False), nn.LayerNorm(d, bias=False)
        self.attention = RivalAttention(d, heads)
        self.up, self.down = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class RivalGPT(nn.Module):
    """A GPT as nanoGPT builds it (LayerNorm, GELU, learned positions, tied head, no dropout, no biases)."""

    def __init__(self, v: int, d: int, layers: int, heads: int, length: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(v, d), nn.Embedding(length, d)
        self.blocks = nn.ModuleList(RivalBlock(d, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(d, bias=False)
        self.head = nn.Linear(d, v, bias=False)
        self.head.weight = self.tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("project.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if last else 0.02)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def rival_step(v: int, d: int, layers: int, heads: int, length: int, batch: int, dtype: Any = None) -> Any:
    model = RivalGPT(v, d, layers, heads, length)
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), fused=True)
    ids, targets = batch_of(v, length, batch)

    def step() -> float:
        with autocast(ids.device, dtype):
            loss = model(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def our_step(v: int, d: int, layers: int, heads: int, length: int, batch: int, dtype: Any = None) -> Any:
    model = Decoder(DecoderConfig(vocab_size=v, d_model=d, n_layers=layers, n_heads=heads, max_length=length))
    optimizer = build_optimizer(model, TrainConfig())
    objective = Objective(model, LinearLoss(), 1.0)
    ids, targets = batch_of(v, length, batch)

    def step() -> float:
        with autocast(ids.device, dtype):
            combined, loss = objective(ids, targets)
        combined.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    step.parts = model, optimizer, objective.criterion  # type: ignore[attr-defined]
    return step


def saving(folder: Path, step: Any) -> Any:
    """Writes the checkpoint of the model that `step` trains."""
    model, optimizer, criterion = step.parts
    numbers = iter(range(10**9))
    return lambda: save_checkpoint(folder / "run", next(numbers), model, optimizer, criterion, {}, keep=2)


def batch_of(v: int, length: int, batch: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(v, (batch, length + 1), generator=torch.Generator().manual_seed(0))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def peak() -> float:
    """The most memory that this process has held, in MiB. Linux: since exec, which getrusage doesn't forget."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def peak_memory(make: Any, sizes: dict[str, int], box: Any) -> None:
    """MiB that two steps add to a process's peak."""
    torch.set_num_threads(1)
    make(64, 16, 1, 2, 16, 2)()
    step = make(**sizes)
    before = peak()
    step()
    step()
    box.put(peak() - before)


def in_a_child(make: Any, sizes: dict[str, int]) -> float:
    context = multiprocessing.get_context("spawn")
    box = context.Queue()
    child = context.Process(target=peak_memory, args=(make, sizes, box))
    child.start()
    most = float(box.get(timeout=300))
    child.join()
    return most


@benchmark("train")
def rows(quick: bool) -> Iterator[Row]:
    repeats = 1 if quick else 7
    shape: dict[str, int] = (
        {"layers": 1, "length": 32, "batch": 2} if quick else {"layers": 6, "length": 256, "batch": 8}
    )
    v = 256 if quick else 4096
    for d, heads in ((32, 2),) if quick else ((192, 6), (384, 6)):
        sizes: dict[str, Any] = {"v": v, "d": d, "heads": heads, **shape}
        cases = {"float32": our_step(**sizes), "rival": rival_step(**sizes)}
        if cpu_has_bfloat16():
            cases["bfloat16"] = our_step(**sizes, dtype=torch.bfloat16)
            cases["rival, bfloat16"] = rival_step(**sizes, dtype=torch.bfloat16)
        t = compare(cases, repeats=repeats, clock="cpu")
        tokens = shape["batch"] * shape["length"]
        for name, target in (("float32", ">= 1.15"), ("bfloat16", ">= 1.6")):
            if name in t:
                yield Row(
                    f"training, {name}, v {v}, d {d}, L {shape['layers']}, T {shape['length']}",
                    rival="plain GPT, float32",
                    ours=tokens / t[name].median,
                    theirs=tokens / t["rival"].median,
                    unit="tokens/s",
                    ratio=t["rival"].median / t[name].median,
                    target=target,
                )
        if "bfloat16" in t:
            yield Row(
                f"training, bfloat16 on both sides, d {d}",
                rival="plain GPT, bfloat16",
                ours=tokens / t["bfloat16"].median,
                theirs=tokens / t["rival, bfloat16"].median,
                unit="tokens/s",
                ratio=t["rival, bfloat16"].median / t["bfloat16"].median,
            )
    large: dict[str, int] = (
        {"v": 512, "d": 32, "heads": 2, **shape} if quick else {"v": 32768, "d": 192, "heads": 6, **shape}
    )
    ours, theirs = in_a_child(our_step, large), in_a_child(rival_step, large)
    yield Row(
        f"peak memory of a step, v {large['v']}",
        rival="plain GPT",
        ours=ours,
        theirs=theirs,
        unit="MiB",
        ratio=ours / theirs if theirs else None,
        target="<= 0.5",
    )
    with TemporaryDirectory() as folder:
        data = TokenFile.write(
            Path(folder) / "t.tok", [range(v)] * (4 if quick else 100), vocab_size=v, end_id=0
        )
        length, batch = shape["length"], shape["batch"]
        step = our_step(v=v, d=32 if quick else 192, heads=2 if quick else 6, **shape)
        prepare = partial(data.batch, batch_size=batch, length=length, seed=0)
        numbers = iter(range(10**9))
        t = compare({"batch": lambda: prepare(next(numbers)), "step": step}, repeats=repeats, clock="cpu")
        yield Row(
            "preparation of a batch",
            rival="its step",
            ours=t["batch"].median,
            theirs=t["step"].median,
            ratio=t["batch"].median / t["step"].median,
            target="<= 0.01",
        )
        t = compare({"save": saving(Path(folder), step), "step": step}, repeats=repeats, clock="wall")
        yield Row(
            "a checkpoint, time that the loop is held",
            rival="a step",
            ours=t["save"].median,
            theirs=t["step"].median,
            ratio=t["save"].median / t["step"].median,
            target="<= 1",
        )
