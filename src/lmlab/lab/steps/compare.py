"""One checkpoint, fine-tuned on a second text with every loss: what differs, and by how much.

All losses see the same batches, for the same number of steps. Losses scale gradients differently, so each has its
own learning rate, chosen on a validation split with the recipe's seed; the seeds after it, which measure on a
test split, never choose anything. Documents that the checkpoint was trained on are in neither split.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmlab.lab.corpus import make_corpus, read_documents
from lmlab.lab.intervals import paired
from lmlab.lab.options import CompareOptions, loss_of
from lmlab.lab.processes import spread
from lmlab.lab.recipe import Recipe
from lmlab.lab.sources import CorpusError
from lmlab.lab.stages import canonical, finite, write_json
from lmlab.lab.steps.corpus import sources_of
from lmlab.lab.steps.job import Job
from lmlab.model.errors import ConfigError
from lmlab.model.fields import to_plain

if TYPE_CHECKING:
    import torch

    from lmlab.model import Decoder
    from lmlab.tokenize import Tokenizer
    from lmlab.train import LossConfig, TokenFile, TrainConfig

VERSION = 2
INPUTS = ("corpus", "tokenize", "train")
BASELINE = "ce"
WINDOWS = 64  # of each split that are scored
WORDS = 16  # common ones, at which the gradient of each loss is drawn
PROMPT = 16  # tokens of a test document that a sample begins with
OF_THE_TEXT = ("ce", "perplexity", "bits_per_byte", "accuracy", "target_probability", "entropy")
OF_SAMPLES = ("distinct_2", "repetition", "copied", "divergence")
METRICS = (*OF_THE_TEXT, *OF_SAMPLES)


def settings(recipe: Recipe) -> tuple[dict[str, Any], list[str]]:
    options = _options(recipe)
    plain = to_plain(options)
    del plain["corpus"]["path"], plain["corpus"]["name"]
    plain["train"] = to_plain(_train_config(recipe, options, loss_of(BASELINE), 1.0, recipe.seed))
    plain["generate"] = to_plain(recipe.generate)
    sources, _ = sources_of(_second(recipe, options))
    return plain | {"seed": recipe.seed}, [source.sha256 for source in sources]


def check(recipe: Recipe) -> None:
    """ConfigError for a loss that the room doesn't accept."""
    import torch

    from lmlab.train.objective import build_criterion

    for n, entry in enumerate(_options(recipe).losses):
        loss = loss_of(entry)
        try:
            build_criterion(
                dataclasses.replace(loss, cost=type(loss.cost)(kind="zero_one")), torch.zeros(2, 2)
            )
        except ConfigError as error:
            raise ConfigError(f"compare.losses[{n}]", error.problem) from None


def _options(recipe: Recipe) -> CompareOptions:
    assert recipe.compare is not None  # the pipeline leaves the stage out without the table
    return recipe.compare


def _second(recipe: Recipe, options: CompareOptions) -> Recipe:
    """The recipe with the second text for its corpus."""
    return dataclasses.replace(recipe, corpus=options.corpus)


def _train_config(
    recipe: Recipe, options: CompareOptions, loss: LossConfig, rate: float, seed: int
) -> TrainConfig:
    """[train] for a fine-tuning. "auto" would choose a precision for each run: here it is float32 for all."""
    precision = "float32" if recipe.train.precision == "auto" else recipe.train.precision
    return dataclasses.replace(
        recipe.train, steps=options.steps, lr=rate, loss=loss, seed=seed, precision=precision
    )


@dataclass(frozen=True)
class Tuning:
    """One fine-tuning. `samples`: also generate, and measure on the test split; else on the validation split."""

    label: str
    config: TrainConfig
    samples: bool
    recipe: Recipe
    home: Path  # of the second text
    tokenizer: Path
    model: Path

    @property
    def file(self) -> Path:
        """Where its result lies; a stage that was cut off doesn't do it again."""
        words = [self.label, self.config.lr, self.config.seed, self.samples]
        return self.home / f"{hashlib.sha256(canonical(words)).hexdigest()[:16]}.json"


def work(job: Job) -> dict[str, Any]:
    from lmlab.lab.steps.pull import pulls
    from lmlab.model import Decoder

    recipe, options = job.recipe, _options(job.recipe)
    home = job.out / "second"
    labels = {label_of(entry): loss_of(entry) for entry in options.losses}
    total = len(labels) * (len(options.learning_rates) + options.seeds)
    with job.display.work(job.label, total) as advance, job.warnings_to_log():
        told = second_text(job, options, home)

        def tuning(label: str, rate: float, seed: int, samples: bool) -> Tuning:
            config = _train_config(recipe, options, labels[label], rate, seed)
            tokenizer, model = job.inputs["tokenize"] / "tokenizer.json", job.inputs["train"] / "model"
            return Tuning(label, config, samples, recipe, home, tokenizer, model)

        trials = [
            tuning(label, rate, recipe.seed, False) for label in labels for rate in options.learning_rates
        ]
        for done, _ in enumerate(_do(trials, job), 1):
            advance(done, "learning rates")
        chosen = {label: _best([t for t in trials if t.label == label]) for label in labels}
        seeds = range(recipe.seed + 1, recipe.seed + 1 + options.seeds)
        runs = [tuning(label, chosen[label]["rate"], seed, True) for label in labels for seed in seeds]
        for done, _ in enumerate(_do(runs, job), len(trials) + 1):
            advance(done, "seeds")
        found = {label: [_read(run) for run in runs if run.label == label] for label in labels}
        for text in dict.fromkeys(t for some in found.values() for one in some for t in one.pop("warnings")):
            job.journal.warn(job.stage, text)
        cost, words = cost_pictures(job.inputs["train"] / "model", job.inputs["tokenize"], home)
        gradient = pulls(Decoder.load(job.inputs["train"] / "model").head.detach().float(), words, labels)
    return summary(found, chosen) | {
        "steps": options.steps,
        "seeds": list(seeds),
        "corpus": told,
        "cost": cost,
        "gradient": gradient,
    }


def label_of(entry: Any) -> str:
    """`emo(balance=none, emo=0.3)` for an entry of compare.losses."""
    if isinstance(entry, str):
        return entry
    told = {k: v for k, v in entry.items() if k not in ("name", "cost")}
    told |= {f"cost.{k}": v for k, v in dict(entry.get("cost", {})).items()}
    values = ", ".join(f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in told.items())
    return f"{entry['name']}({values})" if values else str(entry["name"])


# --- the second text ----------------------------------------------------------------------------------------


def second_text(job: Job, options: CompareOptions, home: Path) -> dict[str, Any]:
    """The second corpus as tokens: train, validation and test; half a done one is made anew."""
    from lmlab.tokenize import Tokenizer
    from lmlab.train import TokenFile

    if (home / "told.json").is_file():
        told: dict[str, Any] = json.loads((home / "told.json").read_text(encoding="utf-8"))
        return told
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    sources, skipped = sources_of(_second(job.recipe, options))
    seed = job.recipe.seed if options.corpus.seed is None else options.corpus.seed
    corpus = make_corpus(sources, skipped, options.corpus, seed, home)
    seen = {_digest(text) for text in read_documents(job.inputs["corpus"] / "train.jsonl")}
    fresh = [text for text in read_documents(home / "held_out.jsonl") if _digest(text) not in seen]
    tokenizer = Tokenizer.load(job.inputs["tokenize"] / "tokenizer.json")
    end = tokenizer.special_tokens["<eos>"]
    splits: dict[str, Iterable[str]] = {
        "tune": read_documents(home / "train.jsonl"),
        "validation": fresh[0::2],
        "test": fresh[1::2],
    }
    told = {"documents": {}, "tokens": {}, "known": corpus["documents"]["held_out"] - len(fresh)}
    for name, texts in splits.items():
        encoded = [tokenizer.encode(text) for text in texts]
        told["documents"][name] = len(encoded)
        told["tokens"][name] = sum(len(ids) + 1 for ids in encoded)
        if told["tokens"][name] < 2 * (job.recipe.train.length + 1):
            raise CorpusError(
                f"[compare] needs at least {2 * (job.recipe.train.length + 1)} tokens for its {name} split and "
                f"found {told['tokens'][name]} ({told['known']} held-out documents were left out, which the "
                "model was trained on); give compare.corpus more text or a larger held_out"
            )
        TokenFile.write(home / f"{name}.tok", encoded, vocab_size=tokenizer.vocab_size, end_id=end)
    (home / "test.json").write_text(json.dumps(fresh[1::2], ensure_ascii=False), encoding="utf-8")
    write_json(home / "told.json", told)
    return told


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]


# --- the runs -----------------------------------------------------------------------------------------------


def _do(tunings: Sequence[Tuning], job: Job) -> Iterator[Path]:
    """All of them, those that are done already at once."""
    ready = [t for t in tunings if t.file.is_file()]
    yield from (t.file for t in ready)
    left = [t for t in tunings if not t.file.is_file()]
    if job.workers > 1 and len(left) > 1:
        yield from spread(tune, left, job.workers, job.retry, job.recipe.retry.kills)
    else:
        yield from map(tune, left)


def tune(task: Tuning) -> Path:
    """Fine-tune, measure, and write the result to the task's file."""
    from lmlab.model import Decoder
    from lmlab.tokenize import Tokenizer
    from lmlab.train import TokenFile, train

    model = Decoder.load(task.model)
    tokenizer = Tokenizer.load(task.tokenizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = train(model, TokenFile.open(task.home / "tune.tok"), task.config)
        split = TokenFile.open(task.home / ("test.tok" if task.samples else "validation.tok"))
        found = text_metrics(model, tokenizer, split, task.config.length, task.config.batch_size)
        if task.samples:
            found |= sample_metrics(model, tokenizer, task)
    told = {
        "seed": task.config.seed,
        "metrics": found,
        "history": [{"step": s.step, "ce": s.metrics.get("ce", s.loss)} for s in result.history],
        "warnings": list(dict.fromkeys(str(w.message) for w in caught)),
    }
    write_json(task.file, finite(told))
    return task.file


def _read(task: Tuning) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(task.file.read_text(encoding="utf-8"))
    return found


def _best(trials: Sequence[Tuning]) -> dict[str, Any]:
    """The learning rate with the least cross-entropy on the validation split, and what each one gave."""
    tried = [{"rate": t.config.lr, "ce": _read(t)["metrics"]["ce"]} for t in trials]
    best = min(tried, key=lambda row: math.inf if row["ce"] is None else row["ce"])
    return {"rate": best["rate"], "tried": tried}


def text_metrics(
    model: Decoder, tokenizer: Tokenizer, data: TokenFile, length: int, batch: int
) -> dict[str, float]:
    """Means over the tokens of the first windows of a split."""
    import torch

    sums = dict.fromkeys(("ce", "correct", "probability", "entropy"), 0.0)
    count = size = 0
    widths = torch.tensor([len(piece) for piece in tokenizer.pieces])
    widths[list(tokenizer.special_tokens.values())] = 0
    model.eval()
    with torch.inference_mode():
        for ids, targets in data.in_order(length, batch, WINDOWS):
            log_p = torch.log_softmax(model(ids).float(), dim=-1)
            chosen = log_p.gather(-1, targets[..., None])
            sums["ce"] -= float(chosen.double().sum())
            sums["correct"] += float((log_p.argmax(-1) == targets).sum())
            sums["probability"] += float(chosen.exp().double().sum())
            sums["entropy"] -= float((log_p.exp() * log_p).double().sum())
            count += targets.numel()
            size += int(widths[targets].sum())
    ce = sums["ce"] / count
    return {
        "ce": ce,
        "perplexity": math.exp(ce),
        "bits_per_byte": sums["ce"] / (math.log(2) * max(1, size)),
        "accuracy": sums["correct"] / count,
        "target_probability": sums["probability"] / count,
        "entropy": sums["entropy"] / count,
    }


def sample_metrics(model: Decoder, tokenizer: Tokenizer, task: Tuning) -> dict[str, float]:
    """What goes on after the beginnings of test documents; each number's twin is of the human text."""
    from lmlab.evaluate import sample_quality
    from lmlab.model import generate

    options, how = _options(task.recipe), task.recipe.generate
    texts: list[str] = json.loads((task.home / "test.json").read_text(encoding="utf-8"))
    end = tokenizer.special_tokens["<eos>"]
    prompts = [[end, *tokenizer.encode(text)[:PROMPT]] for text in texts[: options.prompts]]
    made = generate(
        model,
        prompts,
        max_new_tokens=options.new_tokens,
        temperature=how.temperature,
        top_k=how.top_k,
        top_p=how.top_p,
        min_p=how.min_p,
        stop=[end],
        seed=task.config.seed,
    )
    train = "".join(read_documents(task.home / "train.jsonl"))
    found = sample_quality([tokenizer.decode_bytes(one.ids) for one in made], texts, train)
    return {k: v for k, v in found.items() if k.removeprefix("reference_") in OF_SAMPLES}


# --- what it says -------------------------------------------------------------------------------------------


def summary(found: Mapping[str, Sequence[dict[str, Any]]], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Each loss with its mean metrics, and the paired differences to cross-entropy with their intervals."""
    differences: dict[str, dict[str, Any]] = {label: {} for label in found}
    for name in METRICS:
        values = {label: [run["metrics"].get(name) for run in runs] for label, runs in found.items()}
        if any(v is None for row in values.values() for v in row):
            continue  # a metric that a sample without an n-gram can't have
        for label, difference in paired(values, BASELINE).items():
            differences[label][name] = dataclasses.asdict(difference)
    human = next(iter(found.values()))[0]["metrics"]
    return {
        "losses": [
            {
                "label": label,
                "learning_rate": chosen[label]["rate"],
                "tried": chosen[label]["tried"],
                "metrics": {name: _mean([run["metrics"].get(name) for run in runs]) for name in METRICS},
                "differences": differences[label],
                "runs": list(runs),
            }
            for label, runs in found.items()
        ],
        "human": {name: human.get(f"reference_{name}") for name in OF_SAMPLES},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def cost_pictures(model: Path, tokens: Path, home: Path) -> tuple[dict[str, Any], list[int]]:
    """The transport cost of the checkpoint's head, raw and centred: nearest pieces, and how it is spread; and
    the most common words."""
    import torch

    from lmlab.losses import Cost
    from lmlab.model import Decoder
    from lmlab.tokenize import Tokenizer
    from lmlab.train import TokenFile

    head = Decoder.load(model).head.detach().float()
    tokenizer = Tokenizer.load(tokens / "tokenizer.json")
    ids = torch.cat([ids.flatten() for ids, _ in TokenFile.open(home / "tune.tok").in_order(64, 8, 4096)])
    counts = torch.bincount(ids, minlength=len(head))
    words = [i for i in counts.argsort(descending=True).tolist() if _is_word(tokenizer.pieces[i])]
    common = torch.tensor(words[:1000] or [0])
    nearest: list[dict[str, Any]] = [{"piece": _text(tokenizer, i)} for i in words[:5]]
    edges = torch.linspace(0, 2, 41)
    told: dict[str, Any] = {"nearest": nearest, "histogram": {"edges": edges.tolist()}}
    for name, center in (("raw", False), ("centred", True)):
        cost = Cost.frozen(head, center=center)
        for row, costs in zip(nearest, cost.rows(torch.tensor(words[:5], dtype=torch.int64)), strict=True):
            near = costs[common].argsort()[1:11]
            row[name] = [
                {"piece": _text(tokenizer, int(common[k])), "cost": float(costs[common[k]])} for k in near
            ]
        pairs = cost.rows(common)[:, common]
        apart: torch.Tensor = pairs[~torch.eye(len(common), dtype=torch.bool)]
        told["histogram"][name] = torch.histogram(apart.clamp(0, 2), edges).hist.long().tolist()
    return told, common[:WORDS].tolist()


def _is_word(piece: bytes) -> bool:
    return piece.decode("utf-8", "ignore").strip().isalpha()


def _text(tokenizer: Tokenizer, i: int) -> str:
    return tokenizer.pieces[i].decode("utf-8", "replace")
