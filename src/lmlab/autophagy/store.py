"""The files of a run, and the digests by which a later run knows them again.

`run.json`: the settings and their digest. `seed-S/gen-TTTT.npz`: one finished generation; arrays of the
model's state, the metric row, the origin row and the sha256 of all of them. Nothing is pickled.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.retry import atomic_write


class RunMismatch(ValueError):
    """`out` holds a run of other settings."""


@dataclass(frozen=True)
class Record:
    """What is kept of a generation beside its model: metric values, rows by maker, digest of all."""

    values: np.ndarray
    origin: np.ndarray
    digest: str


def plain(value: Any) -> Any:
    """`value` as JSON: a dataclass by its fields, an array by its sha256, a function by its name."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else repr(value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, np.ndarray):
        return {"array": f"{value.dtype.str}{list(value.shape)}", "sha256": array_sha256({"": value})}
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if is_dataclass(value):
        return {"type": type(value).__name__} | {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    settings = getattr(value, "__dict__", {})
    return {"type": type(value).__name__} | {str(k): plain(v) for k, v in sorted(settings.items())}


def digest_of(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def array_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, dtypes, shapes and bytes, sorted by name."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"{name}\0{array.dtype.str}{array.shape}\0".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def first_difference(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The first field that differs between two JSON values, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            found = first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
            if found:
                return found
        return None
    return None if old == new else (path, old, new)


# ---------------------------------------------------------------- the directory
@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Only one run at a time works in `out`; a second one waits, and says so."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"autophagy: another run works in {out}; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_manifest(out: Path) -> dict[str, Any] | None:
    path = out / "run.json"
    if not path.exists():
        return None
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return manifest


def claim(out: Path, settings: dict[str, Any]) -> str:
    """Write `run.json`, or check that the one that is there has the same settings; the settings' digest."""
    digest = digest_of(settings)
    manifest = read_manifest(out)
    if manifest is None:
        with atomic_write(out / "run.json", "w", encoding="utf-8") as file:
            json.dump({"digest": digest, "settings": settings}, file, indent=1)
    elif manifest["digest"] != digest:
        difference = first_difference(manifest["settings"], json.loads(json.dumps(settings)))
        where, old, new = difference or ("digest", manifest["digest"], digest)
        raise RunMismatch(
            f"out: {out} holds a run of other settings: {where} is {old!r} there and {new!r} here; "
            "give another out, or remove that directory"
        )
    return digest


def seeds_of(out: Path) -> tuple[int, ...]:
    found = (re.fullmatch(r"seed-(-?\d+)", path.name) for path in out.iterdir())
    return tuple(sorted(int(match[1]) for match in found if match))


def generation_path(out: Path, seed: int, generation: int) -> Path:
    return out / f"seed-{seed}" / f"gen-{generation:04d}.npz"


def set_path(out: Path, seed: int, born: int, model: int) -> Path:
    return out / "sets" / f"seed-{seed}" / f"born-{born:04d}-model-{model:04d}.npz"


def fit_path(
    fits: Path, generator: Any, rows: np.ndarray, weights: np.ndarray | None, seed: int, generation: int
) -> Path:
    """The file of the model that `generator` becomes on these rows, by all that decides it."""
    made_of = {"generator": plain(generator), "rows": plain(rows), "weights": plain(weights), "seed": seed}
    return fits / f"{digest_of(made_of | {'generation': generation})}.npz"


# ---------------------------------------------------------------- one file
def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    sha = np.frombuffer(bytes.fromhex(array_sha256(arrays)), dtype=np.uint8)
    np.savez(buffer, allow_pickle=False, **{**arrays, "sha256": sha})
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a file; None if it isn't there, or if it is damaged."""
    try:
        # Opened here, because numpy leaves the file of a damaged archive open.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        sha = arrays.pop("sha256").tobytes().hex()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zipfile.zlib.error):  # type: ignore[attr-defined]
        return None
    return arrays if sha == array_sha256(arrays) else None


def pack(
    state: Mapping[str, np.ndarray], values: Sequence[float], origin: np.ndarray
) -> dict[str, np.ndarray]:
    return {
        **{f"state/{name}": np.asarray(array) for name, array in state.items()},
        "metrics": np.asarray(values, dtype=np.float64),
        "origin": origin,
    }


def record(arrays: Mapping[str, np.ndarray]) -> Record:
    return Record(arrays["metrics"], arrays["origin"], array_sha256(arrays))


def read_prefix(out: Path, seed: int, generations: int | None = None) -> list[Record]:
    """The newest valid prefix of a seed's generations. A damaged file ends it, and is reported."""
    records: list[Record] = []
    while generations is None or len(records) < generations:
        path = generation_path(out, seed, len(records) + 1)
        if not path.exists():
            break
        arrays = read_arrays(path)
        if arrays is None:
            warnings.warn(
                f"{path} is damaged; it and what follows is made again", RuntimeWarning, stacklevel=2
            )
            break
        records.append(record(arrays))
    return records


def read_state(out: Path, seed: int, generation: int) -> dict[str, np.ndarray]:
    path = generation_path(out, seed, generation)
    arrays = read_arrays(path)
    if arrays is None:
        raise ValueError(f"{path} is missing or damaged; the same run(…, out=…) makes it again")
    return {name.removeprefix("state/"): a for name, a in arrays.items() if name.startswith("state/")}
