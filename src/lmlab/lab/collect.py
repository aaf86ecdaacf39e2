"""What lies at the top of a run directory when the stages are done: metrics, samples, models, stages."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab.lab.recipe import Recipe
from lmlab.lab.stages import Done, finite, write_json
from lmlab.retry import atomic_write

Arms = Mapping[tuple[str, int], Mapping[str, Done]]
SHARED = ("corpus", "tokenize")  # listed once when every arm has the same


def collect(
    out: Path, recipe: Recipe, recipes: Mapping[tuple[str, int], Recipe], done: Arms
) -> dict[str, Any]:
    """Write models/, samples.jsonl and metrics.json; return what metrics.json says."""
    for (variant, seed), stages in done.items():
        if "train" in stages:
            name = variant if seed == recipe.seed else f"{variant}.{seed}"
            _publish_model(out / "models" / name, stages)
    if any("generate" in stages for stages in done.values()):
        _write_samples(out / "samples.jsonl", done)
    metrics: dict[str, Any] = finite(make_metrics(recipe, done))
    write_json(out / "metrics.json", metrics)
    return metrics


def stage_list(done: Arms) -> list[dict[str, Any]]:
    """The stages of this recipe in order; what all arms share stands there once, with no variant."""
    rows: list[dict[str, Any]] = []
    names = dict.fromkeys(name for stages in done.values() for name in stages)
    for name in names:
        arms = {arm: stages[name] for arm, stages in done.items() if name in stages}
        shared = name in SHARED and len({d.path for d in arms.values()}) == 1
        for (variant, seed), one in list(arms.items())[: 1 if shared else None]:
            rows.append(
                {
                    "stage": name,
                    "variant": None if shared else variant,
                    "seed": seed,
                    "directory": f"stages/{one.path.name}",
                    "reused": one.reused,
                    "seconds": one.seconds,
                }
            )
    return rows


def _publish_model(target: Path, stages: Mapping[str, Done]) -> None:
    """`models/NAME/`: hard links to the stages' files (copies where links can't be), so nothing is held twice."""
    model = stages["train"].path / "model"
    files = [*(p for p in model.iterdir() if p.is_file()), stages["tokenize"].path / "tokenizer.json"]
    temporary = target.parent / f".tmp-{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for file in files:
        try:
            os.link(file, temporary / file.name)
        except OSError:
            shutil.copyfile(file, temporary / file.name)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def _write_samples(path: Path, done: Arms) -> None:
    with atomic_write(path, "w", encoding="utf-8") as file:
        for (variant, seed), stages in done.items():
            if "generate" in stages:
                lines = (stages["generate"].path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
                for line in lines:
                    row = {"variant": variant, "seed": seed} | json.loads(line)
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def make_metrics(recipe: Recipe, done: Arms) -> dict[str, Any]:
    first = done["base", recipe.seed]
    corpus = first["corpus"].result
    evaluate = first["evaluate"].result if "evaluate" in first else {}
    variants: dict[str, Any] = {}
    for variant in dict.fromkeys(name for name, _ in done):
        by_seed = {seed: arm_metrics(stages) for (name, seed), stages in done.items() if name == variant}
        variants[variant] = mean_of(list(by_seed.values()))
        if recipe.seeds > 1:
            variants[variant]["seeds"] = {str(seed): one for seed, one in by_seed.items()}
    return {
        "schema": 1,
        "name": recipe.name,
        "seed": recipe.seed,
        "baselines": evaluate.get("baselines", dict.fromkeys(("uniform", "unigram", "zlib", "lzma"))),
        "corpus": {k: corpus[k] for k in ("documents", "train_bytes", "held_out_bytes", "skipped")},
        "variants": variants,
    }


def arm_metrics(stages: Mapping[str, Done]) -> dict[str, Any]:
    """The numbers of one variant and seed; None for what wasn't done."""
    train = stages["train"].result if "train" in stages else {}
    evaluate = stages["evaluate"].result if "evaluate" in stages else {}
    keys = ("parameters", "tokens", "tokens_per_second", "train_loss", "held_out_loss", "weights_sha256")
    return {
        "bits_per_byte": evaluate.get("bits_per_byte"),
        "bytes_per_token": evaluate.get("bytes_per_token"),
        "typos": evaluate.get("typos"),
        **{key: train.get(key) for key in keys},
        "samples": stages["generate"].result["samples"] if "generate" in stages else None,
        "length": _length(evaluate.get("length")),
        "autophagy": _autophagy(stages["autophagy"].result) if "autophagy" in stages else None,
    } | ({"compare": _compare(stages["compare"].result)} if "compare" in stages else {})


def _length(length: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """method -> its losses by context, tax, gain and over_window; and how well it copies."""
    if length is None:
        return None
    found = {
        row["method"]: {
            "loss": {str(loss["context"]): loss["loss"] for loss in row["losses"]},
            **{key: row[key] for key in ("tax", "gain", "over_window", "identical")},
        }
        for row in length["rows"]
    }
    for row in length["copy"] or ():  # asked of the recall corpus only
        found[row["method"]].setdefault("copy", {})[str(row["length"])] = row["accuracy"]
    return found


def _compare(result: Mapping[str, Any]) -> dict[str, Any]:
    """loss -> metric -> mean, and its difference to cross-entropy where one was seen."""
    return {
        loss["label"]: {
            name: {"mean": mean, "difference": loss["differences"].get(name)}
            for name, mean in loss["metrics"].items()
        }
        for loss in result["losses"]
    }


def _autophagy(result: Mapping[str, Any]) -> dict[str, Any]:
    """arm -> metric -> first and last generation, mean over the seeds."""
    return {
        f"{arm['loop']}{' control' if arm['control'] else ''} {arm['bias']:g}": {
            name: {"first": values["mean"][0], "last": values["mean"][-1]}
            for name, values in arm["metrics"].items()
        }
        for arm in result["arms"]
    }


def mean_of(values: Sequence[Any]) -> Any:
    """The mean of equal trees of numbers; what isn't a number stays if all agree, else it is None."""
    first = values[0]
    if len(values) == 1:
        return first
    if all(isinstance(v, Mapping) for v in values):
        return {k: mean_of([v.get(k) for v in values]) for k in first}
    if all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values):
        return first if all(v == first for v in values) else sum(values) / len(values)
    return first if all(v == first for v in values) else None
