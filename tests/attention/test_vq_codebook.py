"""The codebook: one step by the formulas, revival that lasts, what counts once, health; and the mixer around it."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lmlab.attention import Codebook, VQAttention, VQOptions, assign_codes, step_codebooks


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clusters(count: int, each: int, dim: int, seed: int, spread: float = 0.05) -> Tensor:
    centres = normal(count, dim, seed=seed) * 3
    return (centres.repeat_interleave(each, 0) + spread * normal(count * each, dim, seed=seed + 1))[
        None, None
    ]


def test_one_step_is_the_moving_average_of_the_formulas() -> None:
    book = Codebook(2, 5, 3, decay=0.9, revive=0.0, init="normal")
    before = [x.double().numpy().copy() for x in (book.embedding, book.count, book.total)]
    k = normal(2, 2, 40, 3, seed=1)
    book(k[:1])
    book(k[1:])  # two micro-batches are one batch
    codes = assign_codes(k, book.embedding)
    book.step()
    for head in range(2):
        for c in range(5):
            mine = k[:, head][codes[:, head] == c].double().numpy()
            n = 0.9 * before[1][head, c] + 0.1 * len(mine)
            s = 0.9 * before[2][head, c] + 0.1 * mine.sum(0)
            assert np.allclose(book.count[head, c].item(), n, atol=1e-6)
            assert np.allclose(book.embedding[head, c].numpy(), s / n, atol=1e-5)


def test_nothing_recorded_changes_nothing_and_evaluation_records_nothing() -> None:
    book = Codebook(1, 4, 3, init="normal")
    before = copy.deepcopy(book.state_dict())
    book.step()
    book.eval()
    k_hat, codes, _ = book(normal(1, 1, 9, 3, seed=2))
    book.step()
    assert all(torch.equal(a, b) for a, b in zip(before.values(), book.state_dict().values(), strict=True))
    assert torch.equal(k_hat[0, 0], book.embedding[0][codes[0, 0]])


def test_k_hat_is_the_code_in_training_too_and_its_gradient_goes_to_the_key() -> None:
    book = Codebook(1, 4, 3, init="normal")
    k = normal(1, 1, 9, 3, seed=3).requires_grad_()
    k_hat, codes, commitment = book(k)
    assert torch.equal(k_hat[0, 0], book.embedding[0][codes[0, 0]])
    (grad,) = torch.autograd.grad((k_hat * 2).sum(), k, retain_graph=True)
    assert torch.equal(grad, torch.full_like(grad, 2))
    assert torch.allclose(commitment, (k - k_hat).square().sum(-1).mean())


def test_a_code_far_away_is_revived_and_stays() -> None:
    book = Codebook(1, 8, 2, decay=0.9, revive=0.1)
    k = clusters(8, 50, 2, seed=4)
    book(k)
    book.step()
    book.embedding[0, 3], book.count[0, 3], book.total[0, 3] = 1e4, 0.0, 0.0
    revived = 0
    for _ in range(3):
        book(k)
        revived += int(book.step().revived)
        assert float(book.embedding[0, 3].norm()) < 100
    assert revived >= 1
    for _ in range(2):
        book(k)
        book.step()
    assert float(book.stats().alive) == 1.0 and float(book.embedding[0, 3].norm()) < 100


def test_separated_clusters_are_all_found() -> None:
    k = clusters(24, 40, 8, seed=7)
    within = float(
        (k[0, 0].view(24, 40, 8) - k[0, 0].view(24, 40, 8).mean(1, keepdim=True)).square().sum()
        / k.square().sum()
    )
    book = Codebook(1, 48, 8, decay=0.9, revive=0.05, init="normal", seed=1)
    for _ in range(60):
        book(k)
        stats = book.step()
    assert float(stats.relative_error) < 2 * within


def test_two_runs_agree_to_the_bit_and_threads_do_not_matter() -> None:
    def state(threads: int) -> dict[str, Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        book = Codebook(2, 16, 4, revive=0.5, seed=3)
        for step in range(4):
            book(normal(3, 2, 30, 4, seed=step))
            book.step()
        torch.set_num_threads(before)
        return book.state_dict()

    first, second, wide = state(1), state(1), state(2)
    for name, value in first.items():
        assert torch.equal(value, second[name]) and torch.equal(value, wide[name])


def test_activation_checkpointing_counts_a_batch_once() -> None:
    books = [Codebook(1, 8, 4, seed=5) for _ in range(2)]
    for book, again in zip(books, (False, True), strict=True):
        for step in range(3):
            k = normal(1, 1, 50, 4, seed=step).requires_grad_()

            def loss(k: Tensor, book: Codebook = book) -> Tensor:
                return book(k)[0].square().sum()

            (checkpoint(loss, k, use_reentrant=False) if again else loss(k)).backward()
            book.step()
    for a, b in zip(books[0].state_dict().values(), books[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_buffers_stay_in_float32_and_travel_with_the_state() -> None:
    book = Codebook(1, 4, 3)
    book(normal(1, 1, 20, 3, seed=1))
    book.step()
    half = copy.deepcopy(book).half()
    assert half.embedding.dtype == half.count.dtype == half.total.dtype == torch.float32
    other = Codebook(1, 4, 3, seed=9)
    other.load_state_dict(book.state_dict())
    for b in (book, other):
        b.seed = 0
        b(normal(1, 1, 20, 3, seed=2))
        b.step()
    assert torch.equal(book.embedding, other.embedding)


def test_commitment_of_half_precision_keys_is_summed_in_float32() -> None:
    book = Codebook(1, 4, 64, init="normal")
    keys = 60 * torch.randn(1, 1, 50, 64, generator=torch.Generator().manual_seed(0))
    quantised, _, commitment = book(keys.half())
    assert quantised.dtype == torch.float16
    assert commitment == pytest.approx(float(book(keys)[2]), rel=1e-3)  # above 65,504, the largest float16


def test_fewer_keys_than_codes_repeat() -> None:
    book = Codebook(1, 16, 2)
    error = book.fit(normal(1, 1, 5, 2, seed=1))
    assert error == pytest.approx(0, abs=1e-6) and float(book.stats().alive) < 0.5


@pytest.mark.parametrize("position", ["bias", "rotary", "none"])
@pytest.mark.parametrize("gate", [False, True])
def test_the_mixer_step_by_step_equals_the_whole(position: str, gate: bool) -> None:
    torch.manual_seed(0)
    options = VQOptions(codes=7, position=position, window=4, gate=gate)  # type: ignore[arg-type]
    mixer = VQAttention(24, 4, n_kv_heads=2, options=options)
    mixer.train()
    x = normal(2, 11, 24, seed=1)
    y, state, aux = mixer(x)
    assert y.shape == x.shape and state is None and aux is not None and float(aux.detach()) > 0
    step_codebooks(mixer)
    mixer.eval()
    with torch.no_grad():
        whole, _, aux = mixer(x)
        state = mixer.init_state(2)
        size = state.nbytes
        parts = [mixer(x[:, i : i + 1], state)[0] for i in range(11)]
    assert aux is None and state.nbytes == size and state.position == 11
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)
    assert mixer.flops_per_token(100) == mixer.flops_per_token(10_000)


def test_training_reaches_every_parameter_and_keeps_codes_alive() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Embedding(32, 16), VQAttention(16, 2, options=VQOptions(codes=16, window=8)), nn.Linear(16, 32)
    )
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    ids = torch.randint(32, (4, 65), generator=torch.Generator().manual_seed(2))
    for _ in range(30):
        y, _, aux = model[1](model[0](ids[:, :-1]))
        loss = nn.functional.cross_entropy(model[2](y).flatten(0, 1), ids[:, 1:].flatten()) + aux
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
        optimizer.step()
        (stats,) = step_codebooks(model).values()
    assert float(stats.mean().alive) >= 0.9


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Codebook(0, 4, 3), "heads must be >= 1"),
        (lambda: Codebook(1, 4, 3, decay=1.0), "decay"),
        (lambda: Codebook(1, 4, 3, revive=-1), "revive"),
        (lambda: Codebook(1, 4, 3, init="zeros"), "kmeans"),  # type: ignore[arg-type]
        (lambda: Codebook(1, 4, 3).fit(torch.zeros(1, 1, 0, 3)), "no keys"),
        (lambda: VQAttention(10, 4, n_kv_heads=3), "multiple of n_kv_heads"),
        (lambda: VQAttention(10, 4), "give head_dim"),
    ],
)
def test_bad_input(call: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()  # type: ignore[operator]
