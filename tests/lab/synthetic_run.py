"""A run directory as the pipeline leaves it, made up: for tests of the report and to look at its design."""

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

HOSTILE = "<script>alert(1)</script></svg>]]>\"'&amp;\x00\x1b[31m\u202eevil\u2066\u200b"
BASELINES = {"uniform": 8.0, "unigram": 5.71, "zlib": 4.18, "lzma": 2.70}
SETTINGS = {
    "evaluate": {
        "evaluate": {"length": {"extensions": [{"method": "ntkaware"}, {"method": "rerope", "window": 64}]}}
    },
    "autophagy": {"autophagy": {"generator": "ngram"}},
}
POEM = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"
VERSE = "And God said, Let there be light: and there was light."


def write_run(
    path: Path,
    *,
    variants: tuple[str, ...] = ("base",),
    seeds: int = 1,
    stages: tuple[str, ...] = ("corpus", "tokenize", "train", "evaluate", "generate", "autophagy"),
    length: bool = True,
    copy: bool = False,
    scale: str | None = None,
    hostile: bool = False,
) -> Path:
    """Write a run; `stages`: those that are finished; `hostile`: texts that try to break out of the page."""
    draw = random.Random(7)
    evil = HOSTILE if hostile else ""
    path.mkdir(parents=True, exist_ok=True)
    (path / "recipe.toml").write_text(
        f"name = {json.dumps('demo' + (' ' + HOSTILE.translate({0: None, 27: None}) if hostile else ''))}\n"
        "seed = 0\n\n[model]\nd_model = 128\n\n[train]\nsteps = 600\nlength = 256\n",
        encoding="utf-8",
    )
    _json(
        path / "versions.json",
        {
            "python": "3.11.7",
            "lmlab": "0.1.0",
            "torch": "2.13.0",
            "numpy": "2.3.1",
            "platform": "Linux x86_64" + evil,
            "cpu": "two cores",
            "threads": 2,
            "command": "lmlab run demo --out runs/demo" + evil,
        },
    )
    listed: list[dict[str, Any]] = []
    for i, variant in enumerate(variants):
        for seed in range(seeds):
            results = {
                "corpus": _corpus(evil),
                "tokenize": _tokenize(evil),
                "train": _train(draw, i),
                "evaluate": _evaluate(draw, 2.31 + 0.07 * i + draw.gauss(0, 0.012), length, copy, evil),
                "generate": _generate(),
                "autophagy": _autophagy(draw, evil),
                "compare": _compare(draw, evil),
            }
            for stage in stages:
                shared = stage in ("corpus", "tokenize", "compare", "autophagy")
                if shared and (i or seed):
                    entry = {
                        **next(e for e in listed if e["stage"] == stage),
                        "variant": variant,
                        "seed": seed,
                    }
                    listed.append(entry)
                    continue
                key = f"{len(listed):012x}"
                directory = path / "stages" / f"{stage}-{key}"
                directory.mkdir(parents=True)
                seconds = {"corpus": 0.8, "tokenize": 9.4, "train": 131.0, "evaluate": 14.2}.get(stage, 21.5)
                told = {"stage": stage, "variant": variant, "seed": seed, "key": key * 5, "code_version": 1}
                told |= {
                    "settings": SETTINGS.get(stage, {"model": {"attention": {"scale": scale}}}),
                    "inputs": [],
                    "seconds": seconds,
                    "result": results[stage],
                }
                _json(directory / "stage.json", told)
                if stage == "tokenize":
                    pieces = [
                        [{"hex": "e4"}, -17.2],
                        ["e", -9.5],
                        [" the", -4.1],
                        ["月光" + evil, -8.8],
                        ["<eos>", None],
                    ]
                    known = {"format": "lmlab.tokenize", "special_tokens": {"<eos>": 4}, "pieces": pieces}
                    _json(directory / "tokenizer.json", known)
                if stage == "generate":
                    lines = [json.dumps(s) for s in _samples(draw, evil)]
                    (directory / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
                entry = {"stage": stage, "variant": variant, "seed": seed, "reused": stage == "corpus"}
                listed.append({**entry, "directory": f"stages/{directory.name}", "seconds": seconds})
    _json(path / "stages.json", listed)
    warnings = ["the corpus holds one document twice", "bfloat16 is slower here\nthan float32" + evil]
    log = [{"stage": "corpus", "event": "warning", "text": w} for w in (*warnings, warnings[0])]
    log += [{"event": "resume", "step": 50}]
    again = {
        "stage": "train",
        "event": "retries",
        "name": "atomic_write" + evil,
        "retries": 2,
        "recovered": 1,
    }
    log += [again | {"gave_up": 0, "slept": 0.75}] * 2
    cut = '{"stage": "train", "event": "st'
    (path / "log.jsonl").write_text("\n".join([*map(json.dumps, log), cut]), encoding="utf-8")
    return path


def _corpus(evil: str) -> dict[str, Any]:
    return {
        "documents": {"train": 1489, "held_out": 78},
        "train_bytes": 1_905_122,
        "held_out_bytes": 100_310,
        "skipped": {"invalid UTF-8" + evil: 2, "empty": 11},
        "sources": ["sample/tang.jsonl", "sample/kjv.jsonl" + evil],
    }


def _tokenize(evil: str) -> dict[str, Any]:
    viterbi = ["床前", "明月", "光", "，", " And", " God", " said", evil or "!"]
    drawn = ["床", "前", "明", "月光", "，", " A", "nd", " Go", "d", " sa", "id", evil or "!"]
    text = "床前明月光， And God said" + (evil or "!")
    return {
        "vocab_size": 4096,
        "training": {"rounds": 6},
        "bytes_per_token": {"train": 3.02, "held_out": 2.95},
        "by_script": {"Latin": 3.91, "Han": 3.12, "Common" + evil: 1.44, "digits": 1.02},
        "longest": [
            {"piece": " children of Israel" + evil, "bytes": 19, "score": -7.21},
            {"piece": "不知何处是他乡", "bytes": 21, "score": -11.4},
            {"piece": " the LORD", "bytes": 9, "score": -5.02},
        ],
        "segmentations": [
            {"text": text, "alpha": None, "pieces": viterbi},
            {"text": text, "alpha": 0.2, "pieces": drawn},
            {"text": text, "alpha": 0.2, "pieces": [*viterbi[:2], *drawn[2:]]},
        ],
        "lattice": {
            "text": "明月 And" + (evil or "!"),
            "alpha": 0.3,
            "edges": [
                *[[i, i + 1, "\ufffd", 0.1] for i in range(6)],
                [0, 3, "明", 0.2],
                [0, 6, "明月" + evil, 0.7],
                [3, 6, "月", 0.2],
                [6, 10, " And", 0.9],
                [7, 10, "And", 2.0],
                [0, 99_999, "beyond", 0.5],
                [3, 2, "backwards", 0.5],
                "no edge",
                [None, 1, "x", 0.1],
            ],
            "best": [[0, 6], [6, 10]],
        },
        "alphas": [
            {"alpha": a, "bytes_per_token": 1.5 + a, "entropy_per_byte": 0.6 - a / 5}
            for a in (0.0, 0.3, 1.0, 2.0)
        ],
        "rounds": [
            {"size": s, "bytes_per_token": b}
            for s, b in [(65536, 3.44), (32768, 3.39), (16384, 3.31), (8192, 3.18), (4096, 3.02)]
        ],
    }


def _train(draw: random.Random, i: int) -> dict[str, Any]:
    history = []
    for step in range(1, 601):
        smooth = 4.4 + 0.1 * i + 4 * math.exp(-step / 60)
        loss = smooth + draw.gauss(0, 0.15)
        entry = {"step": step, "tokens": step * 2048, "loss": loss, "ce": loss, "accuracy": 1 / loss}
        rate = 6e-3 * min(step / 30, 0.1 + 0.9 * (1 + math.cos(math.pi * step / 600)) / 2)
        held_out = smooth + 0.12 if step % 50 == 0 else None
        history.append({**entry, "lr": rate, "grad_norm": 0.8, "held_out": held_out})
    return {
        "steps": 600,
        "tokens": 1_228_800,
        "seconds": 130.7,
        "tokens_per_second": 9401.7 - 800 * i,
        "train_loss": 4.31,
        "held_out_loss": 4.52,
        "weights_sha256": "ab" * 32,
        "parameters": 1_378_944,
        "resumed_at": 0,
        "history": history,
    }


def _evaluate(draw: random.Random, bits: float, length: bool, copy: bool, evil: str) -> dict[str, Any]:
    contexts = [256, 512, 1024]
    losses = {
        "none": [4.41, 5.9, 7.3],
        "window": [4.41, 4.40, 4.41],
        "rerope(window=64)" + evil: [4.43, 4.38, 4.36],
        "ntkaware": [4.41, 4.52, 5.2],
        "logn": [4.40, 5.1, 6.2],
    }
    told = {
        "train_length": 256,
        "contexts": contexts,
        "last": 64,
        "rows": [
            {
                "method": m,
                "extension": None if m in ("none", "window") else f"{m}:window=128",
                "losses": [
                    {"context": c, "loss": v, "stderr": 0.03, "targets": 4992}
                    | {"by_document": [v + draw.gauss(0, 0.02) for _ in range(12)]}
                    for c, v in zip(contexts, values, strict=True)
                ],
                "tax": values[0] - 4.41,
                "gain": values[0] - values[2],
                "over_window": values[2] - 4.41,
                "identical": m in ("none", "window"),
            }
            for m, values in losses.items()
        ],
        "by_position": [
            {
                "method": m,
                "rows": [
                    {
                        "start": 64 * j,
                        "stop": 64 * j + 64,
                        "loss": None
                        if (m == "ntkaware" and j == 9)
                        else 4.4 + 0.8 / (j + 1) + slope * max(0, j - 3),
                    }
                    for j in range(16)
                ],
            }
            for m, slope in {
                "none": 0.23,
                "window": 0.002,
                "rerope(window=64)" + evil: -0.006,
                "ntkaware": 0.06,
            }.items()
        ],
    }
    told["copy"] = [
        {"method": m, "length": c, "period": c // 2 - 4, "accuracy": 1.0 if c == 256 or m[0] == "r" else 0.1}
        for m in losses
        for c in contexts
        if copy
    ]
    passkey = [
        {"method": m, "length": t, "depth": d, "accuracy": None if t == 1024 and d == 0.5 else a / (t / 256)}
        for m, a in {"none": 0.6, "rerope(window=64)" + evil: 1.0}.items()
        for t in (256, 512, 1024)
        for d in (0, 0.25, 0.5, 0.75, 1)
    ]
    return {
        "bits_per_byte": bits,
        "bytes_per_token": 2.95,
        "tokens": 34003,
        "bytes": 100_310,
        "documents": 78,
        "baselines": BASELINES,
        "length": told if length else None,
        "passkey": passkey if length else None,
        "inside": {
            "keys": 256,
            "heads": [
                {"layer": i, "head": j, "alpha": a, "measure": 0.8 * a, "entropy": 0.9 - 0.2 * i}
                for i in range(3)
                for j in range(4)
                if (a := 0.5 + i + 0.3 * j)
            ],
            "codes": {
                "layers": [
                    {"layer": i, "codes": 64, "alive": 0.97, "perplexity": 41.2, "relative_error": 0.31}
                    for i in range(3)
                ],
                "loss": 4.41,
                "local_loss": 4.44,
            },
            "recurrent": [
                {
                    "layer": 1,
                    "steps": 128,
                    "exponent": -0.48,
                    "verdict": "contractive" + evil,
                    "sweeps": [
                        {
                            "method": m,
                            "iteration": i,
                            "error": 0.3 * q**i,
                            "exact_prefix": min(128, (i + 1) * g),
                        }
                        for m, q, g in (("jacobi", 0.6, 1), ("newton", 0.01, 40))
                        for i in range(6)
                    ],
                    "by_gain": [
                        {
                            "gain": g,
                            "exponent": -0.6 + 0.2 * g,
                            "sweeps": 3 + round(g) if g < 3 else None,
                            "gradient": {"true": 1e-7, "diagonal": 0.2 * g},
                        }
                        for g in (0.5, 1.0, 2.0, 4.0)
                    ],
                    "by_length": [
                        {"method": m, "length": t, "seconds": s + 1e-4 / t}
                        for m, s in (("this cell", 4e-7), ("torch.nn.GRU" + evil, 9e-6), ("newton", 3e-4))
                        for t in (256, 1024, 4096)
                    ],
                }
            ],
            "state": [
                {"length": 256 * k, "bytes": round(9000 * (2.31 if bits < 2.35 else k))} for k in (1, 4, 16)
            ],
        },
    }


def _compare(draw: random.Random, evil: str) -> dict[str, Any]:
    labels = ["ce", "emo", "emo2", "dft" + evil, "emo(balance=none, emo=0.3)"]
    shifts = [0.0, 0.06, -0.02, 9.0, 0.001]
    metrics = ("ce", "perplexity", "bits_per_byte", "accuracy", "entropy", "distinct_2", "copied")
    losses = []
    for label, shift in zip(labels, shifts, strict=True):
        told = {"mean": shift, "low": shift - 0.01, "high": shift + 0.01, "level": 0.99}
        seen = {**told, "seen": abs(shift) > 0.01}
        losses.append(
            {
                "label": label,
                "learning_rate": 1e-3,
                "tried": [{"rate": r, "ce": 4.5 + r} for r in (1e-3, 3e-3)],
                "metrics": {m: 2.5 + shift for m in metrics},
                "differences": {m: seen for m in metrics[:-1]} if label != "ce" else {},
                "runs": [
                    {"seed": k, "history": [{"step": t, "ce": 5 - t / 20 + draw.random()} for t in range(20)]}
                    for k in range(3)
                ],
            }
        )
    words = [{"piece": p, "cost": 0.1 * i} for i, p in enumerate((" the", "月" + evil, " of"))]
    p = [0.01, 0.1, 0.5, 0.9, 0.99]
    return {
        "losses": losses,
        "human": {"distinct_2": 0.66, "copied": 0.0},
        "steps": 20,
        "seeds": [1, 2, 3],
        "corpus": {"documents": {"tune": 9}, "tokens": {"tune" + evil: 9000, "test": 800}},
        "cost": {
            "nearest": [{"piece": " and" + evil, "raw": words, "centred": words[:2]}],
            "histogram": {"edges": [0, 0.5, 1, 1.5, 2], "raw": [1, 9, 4, 0], "centred": [0, 3, 8, 2]},
        },
        "gradient": {
            "probabilities": p,
            "losses": [{"label": label, "pull": [1 - x for x in p]} for label in labels],
        },
    }


def _generate() -> dict[str, Any]:
    return {
        "samples": {
            "distinct_1": 0.21,
            "distinct_2": 0.61,
            "distinct_4": 0.93,
            "repetition": 0.04,
            "copied": 0.12,
            "divergence": 0.41,
            "reference_distinct_1": 0.24,
            "reference_distinct_2": 0.66,
            "reference_distinct_4": 0.95,
            "reference_repetition": 0.03,
            "reference_copied": 0.08,
            "reference_divergence": 0.38,
        },
        "count": 8,
    }


def _samples(draw: random.Random, evil: str) -> list[dict[str, Any]]:
    found = []
    for i in range(6):
        text = (VERSE + " And the evening and the morning were the first day. " + evil) if i % 2 else POEM
        pieces, place = [], 0
        while place < len(text):
            size = draw.randint(1, 2 if i % 2 == 0 else 5)
            pieces.append(text[place : place + size])
            place += size
        if i == 2:  # a character in three tokens
            pieces[1:2] = ["\ufffd"] * 3 * len(pieces[1])
        finish = "stop" if i < 4 else "length"
        pieces += ["<eos>"] if finish == "stop" else []
        found.append(
            {
                "prompt": "" if i % 3 == 0 else ("月" if i % 2 == 0 else "In the beginning") + evil,
                "text": text,
                "pieces": pieces,
                "logprobs": [-abs(draw.gauss(0, 3.5)) for _ in pieces],
                "finish": finish,
                "copied": 0.62 if i == 1 else 0.0,
                "copied_spans": [[4, 50]] if i == 1 else [],
            }
        )
    return found


def _autophagy(draw: random.Random, evil: str) -> dict[str, Any]:
    generations = [1, 2, 3, 4, 5]
    arms = []
    for loop, rot, control in [
        ("synthetic" + evil, 1.0, False),
        ("fresh", 0.35, False),
        ("synthetic", 0.0, True),
    ]:
        shapes = {"bits_per_byte": (2.6, 0.3), "distinct_4": (0.8, -0.09), "tail_coverage": (0.7, -0.13)}
        metrics = {
            m: {
                "mean": [a + b * rot * (t - 1) + draw.gauss(0, 0.005) for t in generations],
                "sem": [0.02] * 5,
            }
            for m, (a, b) in shapes.items()
        }
        arms.append(
            {
                "loop": loop,
                "bias": 1.0,
                "control": control,
                "generations": generations,
                "seeds": 3,
                "metrics": metrics,
            }
        )
    times = list(range(101))
    drift = [-0.021 * t for t in times]
    return {
        "arms": arms,
        "collapse": {
            "generations": times,
            "log_det": {
                "mean": [d + 0.15 * math.sin(t / 9) for t, d in zip(times, drift, strict=True)],
                "low": [d - 0.14 * math.sqrt(t) for t, d in zip(times, drift, strict=True)],
                "high": [d + 0.14 * math.sqrt(t) for t, d in zip(times, drift, strict=True)],
                "theory_mean": drift,
                "theory_sd": [0.1 * math.sqrt(t) for t in times],
            },
            "ellipses": [
                {"generation": t, "cov": [[s, 0.5 * s], [0.5 * s, 0.8 * s]], "mean": [0.1 * i, -0.05 * i]}
                for i, (t, s) in enumerate([(1, 1.0), (5, 0.8), (20, 0.45), (100, 0.1)])
            ],
        },
    }


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


if __name__ == "__main__":
    print(write_run(Path(sys.argv[1]), variants=tuple(sys.argv[2:]) or ("base",)))
