"""Error by iteration for contractive, critical and chaotic cells, and what the Lyapunov exponent says of them.

python -m lmlab.benchmarks.recurrent_convergence FOLDER writes recurrent_convergence.csv and .svg (error and
exact prefix after every sweep), recurrent_lyapunov.csv and .svg (sweeps against the exponent, over many draws)
recurrent_windows.csv (sweeps in windows, where the whole length fails) and recurrent_gradient.csv (what a
quasi-Newton Jacobian does to gradients).
"""

from __future__ import annotations

import csv
import sys
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib import pyplot as plt
from torch import Tensor

from lmlab.recurrent import ConvergenceWarning, convergence, lyapunov, solve
from lmlab.recurrent.diagnose import iterates
from lmlab.recurrent.problem import read_problem, sequential
from lmlab.recurrent.sweeps import Window, diagonal_of, evaluate, scan

WIDTH, LENGTH, SWEEPS = 16, 600, 64
GAINS = (0.5, 2.0, 3.0)
NAMES = {0.5: "contractive", 2.0: "critical", 3.0: "chaotic"}
METHODS = ("jacobi", "quasi", "newton", "elk")


def draw(gain: float, seed: int) -> tuple[Any, Tensor, Tensor]:
    """The article's cell tanh(A h + u), A ~ gain·N(0, 1/n), u ~ N(0, 1); also A and u."""
    generator = torch.Generator().manual_seed(seed)
    a = gain * torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64) / WIDTH**0.5
    u = torch.randn(1, LENGTH, WIDTH, generator=generator, dtype=torch.float64)
    return (lambda h, u: torch.tanh(h @ a.T + u)), a, u


def error_by_sweep(folder: Path) -> None:
    rows: list[dict[str, Any]] = []
    figure, axes = plt.subplots(3, 3, figsize=(11, 9), height_ratios=(2, 1, 1))
    for column, gain in enumerate(GAINS):
        cell, _, u = draw(gain, seed=0)
        verdict = lyapunov(cell, u)
        found = convergence(cell, u, methods=METHODS, max_iter=SWEEPS)
        rows += [{"gain": gain, **row} for row in found]
        top = axes[0, column]
        for method in METHODS:
            line = [row for row in found if row["method"] == method]
            top.semilogy(
                [row["iteration"] for row in line], [max(row["error"], 1e-17) for row in line], label=method
            )
        exponent = float(verdict.exponent)
        top.set_title(
            f"{NAMES[gain]}: gain {gain}, exponent {exponent:+.2f}\nverdict: {verdict.verdict}", fontsize=10
        )
        top.set_ylim(1e-17, 1e6)
        top.set_xlabel("sweep")
        _heat_maps(axes[1:, column], cell, u)
    axes[0, 0].set_ylabel("largest error")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    _save(figure, folder / "recurrent_convergence.svg")
    _write(folder / "recurrent_convergence.csv", rows)


def _heat_maps(axes: Any, cell: Any, u: Tensor) -> None:
    """|error| of jacobi and newton by step (across) and sweep (down): white where exact."""
    problem = read_problem(cell, u, None)
    with torch.no_grad():
        truth = sequential(problem.cell, problem.u, problem.h0, None)
        for axis, method in zip(axes, ("jacobi", "newton"), strict=True):
            errors = [(states - truth).abs().amax(-1)[0] for states in iterates(problem, method, SWEEPS)]
            image = torch.stack(errors).clamp(1e-17, 1e3).log10()
            image = torch.nn.functional.interpolate(image[None, None], (len(image), 150))[0, 0]
            axis.imshow(
                image.numpy(),
                aspect="auto",
                cmap="Blues",
                vmin=-16,
                vmax=1,
                extent=(0, LENGTH, len(image), 0),
            )
            axis.set_ylabel(f"{method}, sweep", fontsize=8)
    axes[-1].set_xlabel("step")


def sweeps_by_exponent(folder: Path) -> None:
    rows: list[dict[str, Any]] = []
    for seed in range(8):
        for gain in (0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5, 1.7, 2.0, 2.4, 3.0):
            cell, _, u = draw(gain, seed)
            verdict = lyapunov(cell, u)
            found = convergence(cell, u, methods=("newton",), max_iter=SWEEPS)
            done = [row["iteration"] for row in found if row["residual"] <= 1e-10]
            rows.append(
                {
                    "gain": gain,
                    "seed": seed,
                    "exponent": float(verdict.exponent),
                    "at_guess": float(verdict.at_guess),
                    "growth": float(verdict.growth),
                    "verdict": verdict.verdict,
                    "sweeps": done[0] if done else "",
                }
            )
    colours = {"contractive": "tab:blue", "marginal": "tab:orange", "chaotic": "tab:red"}
    figure, axis = plt.subplots(figsize=(7, 4))
    for name, colour in colours.items():
        chosen = [row for row in rows if row["verdict"] == name]
        solved = [row for row in chosen if row["sweeps"] != ""]
        failed = [row for row in chosen if row["sweeps"] == ""]
        axis.scatter(
            [r["exponent"] for r in solved], [r["sweeps"] for r in solved], s=18, color=colour, label=name
        )
        axis.scatter(
            [r["exponent"] for r in failed], [SWEEPS + 4] * len(failed), s=18, color=colour, marker="x"
        )
    axis.axvline(0, color="grey", linewidth=0.8)
    axis.set_xlabel("Lyapunov exponent along the true path")
    axis.set_ylabel("Newton sweeps (x: not solved)")
    axis.legend(fontsize=8)
    figure.tight_layout()
    _save(figure, folder / "recurrent_lyapunov.svg")
    _write(folder / "recurrent_lyapunov.csv", rows)


def sweeps_by_window(folder: Path) -> None:
    """Newton in windows of some steps, each from the exact last state of the one before."""
    rows = []
    for gain in GAINS[1:]:
        for window in (16, 32, 64, 128, LENGTH):
            for seed in range(4):
                cell, _, u = draw(gain, seed)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    found = solve(cell, u, method="newton", window=window, max_iter=SWEEPS, on_fail="return")
                sweeps = found.iterations if found.converged else ""
                rows.append({"gain": gain, "window": window, "seed": seed, "sweeps": sweeps})
    _write(folder / "recurrent_windows.csv", rows)


def gradient_error(folder: Path) -> None:
    """The gradient in u by the reversed scan with the true Jacobian, and with its diagonal."""
    rows = []
    for gain in (0.5, 0.9, 1.5):
        cell, _, u = draw(gain, seed=0)
        u.requires_grad_()
        states = solve(cell, u, method="newton", tol=1e-12).states
        g = torch.randn(states.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        (ours,) = torch.autograd.grad((states * g).sum(), u)
        h, loop = torch.zeros(1, WIDTH, dtype=torch.float64), []
        for t in range(LENGTH):
            h = cell(h, u[:, t])
            loop.append(h)
        (exact,) = torch.autograd.grad((torch.stack(loop, 1) * g).sum(), u)
        with torch.no_grad():
            window = Window(
                read_problem(cell, u, None).cell, u, torch.zeros(1, WIDTH, dtype=torch.float64), None
            )
            _, j = evaluate("newton", window, states)
            assert j is not None
            ahead = torch.cat([diagonal_of("dense", j)[:, 1:], torch.zeros_like(j[:, :1, 0])], 1)
            quasi = scan("diagonal", ahead, g, None, reverse=True) * (1 - states**2)
        size = exact.norm()
        rows.append(
            {
                "gain": gain,
                "true Jacobian": float((ours - exact).norm() / size),
                "its diagonal": float((quasi - exact).norm() / size),
            }
        )
    _write(folder / "recurrent_gradient.csv", rows)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})


def _save(figure: Any, path: Path) -> None:
    with matplotlib.rc_context({"svg.hashsalt": "lmlab", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main(folder: str) -> None:
    matplotlib.use("Agg")
    for figure in (error_by_sweep, sweeps_by_exponent, sweeps_by_window, gradient_error):
        figure(Path(folder))


if __name__ == "__main__":
    main(sys.argv[1])
