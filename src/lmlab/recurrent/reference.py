"""The formulas as Python loops in float64: what every fast path of this room is compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], Tensor]


def scan(a: Tensor, b: Tensor, h0: Tensor | None = None, *, reverse: bool = False) -> Tensor:
    """h_t = a_t h_{t-1} + b_t; a [b t n] or [b t n n]."""
    dense = a.ndim == 4
    a = a.expand(*b.shape, b.shape[2]) if dense else a.expand(b.shape)
    h = torch.zeros_like(b[:, 0]) if h0 is None else h0
    steps = range(b.shape[1])
    states = {}
    for t in reversed(steps) if reverse else steps:
        h = (a[:, t] @ h[..., None])[..., 0] + b[:, t] if dense else a[:, t] * h + b[:, t]
        states[t] = h
    return torch.stack([states[t] for t in steps], 1)


def sequential(step: Step, u: Tensor, h0: Tensor, reset: Tensor | None = None) -> Tensor:
    """h_t = step(h_{t-1}, u_t), h_{t-1} = 0 where a new sequence starts."""
    h, states = h0, []
    for t in range(u.shape[1]):
        if reset is not None:
            h = torch.where(reset[:, t, None], torch.zeros_like(h), h)
        h = step(h, u[:, t])
        states.append(h)
    return torch.stack(states, 1)


def rnn_step(h: Tensor, x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    return torch.tanh(x @ w_ih.T + b_ih + h @ w_hh.T + b_hh)


def gru_step(h: Tensor, x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    x_r, x_z, x_n = (x @ w_ih.T + b_ih).chunk(3, -1)
    h_r, h_z, h_n = (h @ w_hh.T + b_hh).chunk(3, -1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    m = torch.tanh(x_n + r * h_n)
    return (1 - z) * m + z * h


def lstm_step(s: Tensor, x: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    """The state is h and c side by side."""
    h, c = s.chunk(2, -1)
    i, f, g, o = (x @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.cat([torch.sigmoid(o) * torch.tanh(c), c], -1)


def mingru_step(h: Tensor, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """The rows of w are W_z over W_m."""
    z, m = (x @ w.T + b).chunk(2, -1)
    z = torch.sigmoid(z)
    return (1 - z) * h + z * m


def lru(x: Tensor, nu: Tensor, theta: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """y = Re(C h) + D x with h' = λ h + γ B x, from h = 0; B and C complex."""
    lam = torch.exp(torch.complex(-nu.exp(), theta.exp()))
    gamma = torch.sqrt(1 - lam.abs() ** 2)
    h, outputs = torch.zeros(x.shape[0], lam.numel(), dtype=lam.dtype), []
    for t in range(x.shape[1]):
        h = lam * h + gamma * (x[:, t].to(b.dtype) @ b.T)
        outputs.append((h @ c.T).real + d * x[:, t])
    return torch.stack(outputs, 1)


def jacobian(step: Step, h: Tensor, u: Tensor) -> Tensor:
    """∂ step(h, u) / ∂h [n n] at one point h [n], u [m]."""
    found: Tensor = torch.autograd.functional.jacobian(lambda state: step(state, u), h)
    return found


def sweep(method: str, step: Step, u: Tensor, h0: Tensor, old: Tensor) -> Tensor:
    """One sweep of jacobi, quasi or newton over one sequence: u [t m], h0 [n], old [t n]."""
    h, states = h0, []
    for t in range(u.shape[0]):
        before = h0 if t == 0 else old[t - 1]
        j = jacobian(step, before, u[t])
        if method == "quasi":
            j = torch.diag(torch.diag(j))
        if method == "jacobi":
            j = torch.zeros_like(j)
        h = step(before, u[t]) + j @ (h - before)
        states.append(h)
    return torch.stack(states)


def elk_sweep(step: Step, u: Tensor, h0: Tensor, old: Tensor, mu: float) -> Tensor:
    """The h that minimises Σ_t |h_t − A_t h_{t−1} − c_t|² + μ |h_t − old_t|², by its normal equations."""
    steps, n = old.shape
    system, right = torch.zeros(steps * n, steps * n, dtype=u.dtype), torch.zeros(steps * n, dtype=u.dtype)
    for t in range(steps):
        before = h0 if t == 0 else old[t - 1]
        a = jacobian(step, before, u[t])
        c = step(before, u[t]) - a @ before
        row = torch.zeros(n, steps * n, dtype=u.dtype)
        row[:, t * n : (t + 1) * n] = torch.eye(n, dtype=u.dtype)
        if t == 0:
            c = c + a @ h0
        else:
            row[:, (t - 1) * n : t * n] = -a
        system += row.T @ row
        right += row.T @ c
    system += mu * torch.eye(steps * n, dtype=u.dtype)
    right += mu * old.flatten()
    solution: Tensor = torch.linalg.solve(system, right)
    return solution.view(steps, n)


def residual(step: Step, states: Tensor, u: Tensor, h0: Tensor) -> float:
    """max over t and i of |h_t − f(h_{t−1}, u_t)| / (1 + |h_t|)."""
    before = torch.cat([h0[:, None], states[:, :-1]], 1)
    return float(((states - step(before, u)).abs() / (1 + states.abs())).max())


def lyapunov(step: Step, u: Tensor, h0: Tensor) -> Tensor:
    """All exponents of one path, largest first: QR of J_T … J_1; u [t m], h0 [n]."""
    h, q, total = h0, torch.eye(h0.numel(), dtype=u.dtype), torch.zeros(h0.numel(), dtype=u.dtype)
    for t in range(u.shape[0]):
        q, r = torch.linalg.qr(jacobian(step, h, u[t]) @ q)
        total += r.diagonal().abs().log()
        h = step(h, u[t])
    exponents: Tensor = torch.sort(total / u.shape[0], descending=True)[0]
    return exponents
