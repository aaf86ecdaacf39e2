"""What a model's bits per byte stand beside: four codes that know no language, on the same bytes."""

import lzma
import math
import zlib
from collections import Counter

LARGEST_DICTIONARY = 1 << 28  # bytes; the encoder needs about ten times as much memory


def byte_baselines(train: bytes, held_out: bytes) -> dict[str, float]:
    """Bits per byte of four codes for `held_out`.

    "uniform": 8. "unigram": the order-0 code with add-one counts of the training bytes,
    −Σ log₂ (c(x) + 1) / (|train| + 256) / |held_out|. "zlib": level 9, the held-out bytes alone. "lzma": the
    length of lzma(train ‖ held_out) less that of lzma(train), so it has seen the training text as the model
    did (strongest preset; its dictionary holds both texts, up to 256 MiB: of a longer training text it sees
    the end).

    Raises ValueError where `held_out` is empty.
    """
    if not held_out:
        raise ValueError(
            "held_out is empty: bits per byte need at least one byte, as in byte_baselines(a, b'x')"
        )
    size = len(held_out)
    seen = Counter(train)
    total = math.log2(len(train) + 256)
    unigram = sum(n * (total - math.log2(seen[byte] + 1)) for byte, n in Counter(held_out).items())
    together = train + held_out
    dictionary = min(max(1 << 16, 1 << (len(together) - 1).bit_length()), LARGEST_DICTIONARY)
    return {
        "uniform": 8.0,
        "unigram": unigram / size,
        "zlib": 8 * len(zlib.compress(held_out, 9)) / size,
        "lzma": 8 * (_lzma_length(together, dictionary) - _lzma_length(train, dictionary)) / size,
    }


def _lzma_length(text: bytes, dictionary: int) -> int:
    # A dictionary no larger than the text gives the same code in far less memory than the preset's 64 MiB.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]
    return len(lzma.compress(text, format=lzma.FORMAT_XZ, filters=filters))
