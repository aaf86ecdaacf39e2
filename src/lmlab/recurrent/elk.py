"""The damped sweep: Newton's step held near the last iterate, by a Kalman smoother over all t at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lmlab.recurrent.cells import linearize
from lmlab.recurrent.sweeps import Attempt, Window, apply, residual, scan

START, FACTOR, LEAST, MOST = 1e-3, 10.0, 1e-12, 1e8
Element = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def elk(
    window: Window,
    states: Tensor,
    tol: float,
    max_iter: int,
    on_sweep: Callable[[Tensor], None] | None = None,
) -> Attempt:
    """Damped sweeps (Gonzalez et al., arXiv 2407.19115) with a damping μ for each sequence.

    μ starts at 1e-3; where a step makes the residual larger it is thrown away and μ grows tenfold, else μ
    falls tenfold.
    """
    structure = window.cell.structure
    mu = states.new_full((states.shape[0],), START)
    f, j = linearize(window.cell, window.before(states), window.u)
    rho = residual(states, f)
    merit = _merit(states, f)
    count = 0
    if on_sweep is not None:
        on_sweep(states)
    while float(rho.max()) > tol and count < max_iter:
        a = window.masked(j)
        c = f - apply(structure, a, window.before(states))
        new = damped_sweep(structure, a, c, window.carry, states, mu)
        new = torch.where(torch.isfinite(new).flatten(1).all(1)[:, None, None], new, states)
        new_f, new_j = linearize(window.cell, window.before(new), window.u)
        new_merit = _merit(new, new_f)
        better = new_merit < merit
        count += 1
        states, f, j = (_choose(better, x, y) for x, y in ((new, states), (new_f, f), (new_j, j)))
        merit = torch.where(better, new_merit, merit)
        rho = residual(states, f)
        mu = torch.where(better, (mu / FACTOR).clamp(min=LEAST), mu * FACTOR)
        if on_sweep is not None:
            on_sweep(states)
        if bool((mu > MOST).all()):
            break
    return Attempt(states, rho, count)


def damped_sweep(structure: str, a: Tensor, c: Tensor, carry: Tensor, old: Tensor, mu: Tensor) -> Tensor:
    """The h that minimises Σ_t |h_t − A_t h_{t−1} − c_t|² + μ |h_t − h_t^old|²; μ [b].

    That is the mean of a Kalman smoother: dynamics A, c with noise of variance 1, and h^old as an observation
    with noise of variance 1/μ. Filter and smoother are two scans.
    """
    b, t, n = c.shape
    if structure == "dense":
        return _smoother(a, c, carry, old, mu)
    # A diagonal is n scalar smoothers, a block one of k coordinates for each channel.
    k = 1 if structure == "diagonal" else a.shape[-1]
    small = a.reshape(b, t, n // k, k, k).transpose(1, 2).reshape(-1, t, k, k)

    def split(x: Tensor) -> Tensor:
        parts: Tensor = x.unflatten(-1, (k, n // k)).permute(0, 3, 1, 2)
        return parts.reshape(-1, t, k)

    start = carry.unflatten(-1, (k, n // k)).transpose(1, 2).reshape(-1, k)
    smooth = _smoother(small, split(c), start, split(old), mu.repeat_interleave(n // k))
    whole: Tensor = smooth.view(b, n // k, t, k).permute(0, 2, 3, 1)
    return whole.reshape(b, t, n)


def _smoother(a: Tensor, c: Tensor, carry: Tensor, old: Tensor, mu: Tensor) -> Tensor:
    gain = (mu / (1 + mu))[:, None, None]  # of the filter, and the precision of an observation
    eye = torch.eye(c.shape[-1], dtype=c.dtype, device=c.device)
    c = torch.cat([c[:, :1] + (a[:, 0] @ carry[..., None])[:, None, :, 0], c[:, 1:]], 1)
    a = torch.cat([torch.zeros_like(a[:, :1]), a[:, 1:]], 1)
    surprise = old - c
    keep = (1 - gain)[..., None]
    element = (
        keep * a,
        c + gain * surprise,
        (keep * eye).expand_as(a),
        (a.mT @ (gain * surprise)[..., None])[..., 0],
        gain[..., None] * (a.mT @ a),
    )
    _, mean, variance, _, _ = _associative(element)
    # backwards: h_t = E_t h_{t+1} + m_t − E_t (A_{t+1} m_t + c_{t+1}), E = P Aᵀ (A P Aᵀ + 1)⁻¹
    ahead = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], 1)
    across = ahead @ variance
    e = torch.linalg.solve(across @ ahead.mT + eye, across).mT
    drift = torch.cat([c[:, 1:], torch.zeros_like(c[:, :1])], 1)
    predicted = (ahead @ mean[..., None])[..., 0] + drift
    return scan("dense", e, mean - (e @ predicted[..., None])[..., 0], None, reverse=True)


def _join(i: Element, j: Element) -> Element:
    """Two neighbouring stretches of the filter as one (Särkkä and García-Fernández, arXiv 1905.13002)."""
    a_i, b_i, c_i, eta_i, j_i = i
    a_j, b_j, c_j, eta_j, j_j = j
    eye = torch.eye(b_i.shape[-1], dtype=b_i.dtype, device=b_i.device)
    forward = torch.linalg.solve(
        eye + c_i @ j_j, torch.cat([a_i, c_i, (b_i + _by(c_i, eta_j))[..., None]], -1)
    )
    n = b_i.shape[-1]
    back = torch.linalg.solve(eye + j_j @ c_i, torch.cat([j_j @ a_i, (eta_j - _by(j_j, b_i))[..., None]], -1))
    return (
        a_j @ forward[..., :n],
        _by(a_j, forward[..., 2 * n]) + b_j,
        a_j @ forward[..., n : 2 * n] @ a_j.mT + c_j,
        _by(a_i.mT, back[..., n]) + eta_i,
        a_i.mT @ back[..., :n] + j_i,
    )


def _associative(element: Element) -> Element:
    """All prefixes of `element` under `_join`, in logarithmic depth."""
    steps = element[0].shape[1]
    if steps == 1:
        return element
    even = steps // 2 * 2
    left = _pick(element, slice(0, even, 2))
    odd = _associative(_join(left, _pick(element, slice(1, even, 2))))
    rest = _pick(element, slice(2, None, 2))
    count = rest[0].shape[1]
    joined = _join(_pick(odd, slice(0, count)), rest) if count else rest
    out = []
    for first, o, r in zip(element, odd, joined, strict=True):
        whole = first.new_empty(first.shape)
        whole[:, :1], whole[:, 1::2] = first[:, :1], o
        if count:
            whole[:, 2::2] = r
        out.append(whole)
    return (out[0], out[1], out[2], out[3], out[4])


def _pick(element: Element, part: slice) -> Element:
    a, b, c, eta, j = (x[:, part] for x in element)
    return a, b, c, eta, j


def _by(a: Tensor, x: Tensor) -> Tensor:
    return (a @ x[..., None])[..., 0]


def _merit(states: Tensor, f: Tensor) -> Tensor:
    """Sum of squares of the residual, [b]; infinite where it isn't a number."""
    total = (states - f).double().square().flatten(1).sum(1)
    return torch.where(torch.isfinite(total), total, torch.full_like(total, torch.inf))


def _choose(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(better.view(-1, *(1,) * (new.ndim - 1)), new, old)
