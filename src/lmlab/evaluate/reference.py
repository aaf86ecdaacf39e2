"""The definitions of this room as loops: what the tests compare with."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


@torch.inference_mode()
def bits_per_byte(
    logits: Callable[[Tensor], Tensor],
    encoded: Sequence[Sequence[int]],
    sizes: Sequence[int],
    end: int,
    length: int,
    stride: int,
) -> float:
    """One token at a time. `encoded` are the documents' ids without the end token, `sizes` their bytes."""
    nats = 0.0
    for ids in encoded:
        row = [end, *ids, end]
        for i in range(1, len(row)):
            start = stride * max(0, math.ceil((i - length) / stride))
            last = logits(torch.tensor([row[start:i]]))[0, -1].double()
            nats -= float(last[row[i]] - torch.logsumexp(last, 0))
    return nats / (math.log(2) * sum(sizes))


def unigram(train: bytes, held_out: bytes) -> float:
    """Bits per byte of the order-0 code with add-one counts."""
    return sum(-math.log2((train.count(bytes([x])) + 1) / (len(train) + 256)) for x in held_out) / len(
        held_out
    )


def copied_fraction(text: bytes, train: bytes, n: int) -> float:
    covered: set[int] = set()
    for i in range(len(text) - n + 1):
        if text[i : i + n] in train:
            covered.update(range(i, i + n))
    return len(covered) / len(text) if text else 0.0


def ngram_divergence(a: bytes, b: bytes, n: int) -> float:
    p, q = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (a, b))
    total = 0.0
    for gram in p | q:
        x, y = p[gram] / p.total(), q[gram] / q.total()
        for share in (x, y):
            if share:
                total += share / 2 * math.log2(share / ((x + y) / 2))
    return total
