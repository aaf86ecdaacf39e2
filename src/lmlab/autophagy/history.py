"""What a run measured: metrics and makers of rows, by seed and generation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lmlab.autophagy import store
from lmlab.autophagy.generators.protocol import Generator


@dataclass(frozen=True, eq=False)
class History:
    """metrics, seeds: names of two axes of `values` [seeds generations metrics].

    origin [seeds generations generations]: rows of D_t by maker, column 0 real, column k model k.
    digest: sha256 over the settings, every model's state, every metric and origin: two runs with one digest
    gave the same bits.
    """

    metrics: tuple[str, ...]
    seeds: tuple[int, ...]
    digest: str
    values: Float[np.ndarray, "seeds generations metrics"]
    origin: Int[np.ndarray, "seeds generations generations"]
    out: Path | None = field(default=None, repr=False)
    template: Generator | None = field(default=None, repr=False)

    def __getitem__(self, name: str) -> Float[np.ndarray, "seeds generations"]:
        if name not in self.metrics:
            raise KeyError(f"no metric {name!r} in this run; it has {', '.join(self.metrics) or 'none'}")
        return np.asarray(self.values[:, :, self.metrics.index(name)])

    def mean(self, name: str) -> Float[np.ndarray, " generations"]:
        """Mean over seeds, at each generation."""
        return np.asarray(self[name].mean(axis=0))

    def sem(self, name: str) -> Float[np.ndarray, " generations"]:
        """Standard error of that mean; nan with one seed."""
        values = self[name]
        if len(self.seeds) < 2:
            return np.full(values.shape[1], np.nan)
        return np.asarray(values.std(axis=0, ddof=1) / math.sqrt(len(self.seeds)))

    def rows(self) -> Iterator[dict[str, Any]]:
        """One dict for each seed and generation: seed, generation, each metric, n_real, n_synthetic."""
        for s, seed in enumerate(self.seeds):
            for g in range(self.values.shape[1]):
                row: dict[str, Any] = {"seed": seed, "generation": g + 1}
                row |= {name: float(self.values[s, g, m]) for m, name in enumerate(self.metrics)}
                row["n_real"] = int(self.origin[s, g, 0])
                row["n_synthetic"] = int(self.origin[s, g, 1:].sum())
                yield row

    def to_jsonl(self, path: str | Path) -> None:
        """One line a row; nan and ±∞ become null."""
        from lmlab.retry import atomic_write

        with atomic_write(path, "w", encoding="utf-8") as file:
            for row in self.rows():
                plain = {
                    k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
                }
                file.write(json.dumps(plain, ensure_ascii=False) + "\n")

    @staticmethod
    def read(out: str | Path, generator: Generator | None = None) -> History:
        """The finished generations of a run directory; of all its seeds, up to the shortest.

        `generator`: the template, for `model`; the directory holds its settings, but no code.
        """
        directory = Path(out)
        manifest = store.read_manifest(directory)
        if manifest is None:
            raise ValueError(f"out: {directory} holds no run.json; run(…, out={str(out)!r}) writes one")
        names = tuple(manifest["settings"]["metrics"])
        seeds = store.seeds_of(directory)
        done = [store.read_prefix(directory, seed) for seed in seeds]
        length = min((len(records) for records in done), default=0)
        return assemble(
            names, seeds, manifest["digest"], [r[:length] for r in done], out=directory, template=generator
        )

    def model(self, seed: int, generation: int) -> Generator:
        """The fitted model of one seed and generation, from the files of a run with `out`."""
        if self.out is None:
            raise ValueError("model: this run kept no models; run it with out=DIR")
        if self.template is None:
            raise ValueError(
                "model: History.read was given no generator; History.read(out, generator) knows it"
            )
        if seed not in self.seeds or not 1 <= generation <= self.values.shape[1]:
            raise ValueError(
                f"model: seed must be one of {self.seeds} and generation 1 … {self.values.shape[1]}, "
                f"got {seed!r}, {generation!r}"
            )
        return self.template.load(store.read_state(self.out, seed, generation))


def assemble(
    metrics: tuple[str, ...],
    seeds: tuple[int, ...],
    settings_digest: str,
    records: list[list[store.Record]],
    *,
    out: Path | None,
    template: Generator | None,
) -> History:
    """A History from the records of each seed, all of one length."""
    length = len(records[0]) if records else 0
    values = np.full((len(seeds), length, len(metrics)), np.nan)
    origin = np.zeros((len(seeds), length, length), dtype=np.int64)
    for s, seed_records in enumerate(records):
        for g, record in enumerate(seed_records):
            values[s, g] = record.values
            origin[s, g, : record.origin.size] = record.origin
    digest = store.digest_of(
        {
            "settings": settings_digest,
            "seeds": list(seeds),
            "records": [[r.digest for r in rs] for rs in records],
        }
    )
    return History(metrics, seeds, digest, values, origin, out, template)
