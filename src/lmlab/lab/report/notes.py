"""The small print: what was skipped, warnings in full, versions, and the command to repeat the run."""

from lmlab.lab.report.figure import Figure, Panel, Section, Table, html_table
from lmlab.lab.report.read import RunFiles, array, get, mapping
from lmlab.lab.report.text import amount, duration, escape, finite


def findings(run: RunFiles) -> list[str]:
    """That there are warnings, with the way to them."""
    found = len(_counted(run))
    many = "one warning" if found == 1 else f"{found} warnings"
    return [f'The run gave <a href="#figure-warnings">{many}</a>.'] if found else []


def section(run: RunFiles) -> Section:
    figures = [f for f in (_corpus(run), _warnings(run), _retries(run), _versions(run)) if f]
    return Section("notes", "Small print", _command(run), figures)


def _command(run: RunFiles) -> str:
    command = run.versions.get("command")
    parts = []
    if command:
        parts.append(f'<p>To repeat this run:</p><pre class="wrap">{escape(command)}</pre>')
    if run.recipe_text:
        recipe = escape(run.recipe_text, lines=True)
        parts.append(f"<details><summary>The whole recipe</summary><pre>{recipe}</pre></details>")
    return "".join(parts)


def _corpus(run: RunFiles) -> Figure | None:
    stages = run.of("corpus")
    if not stages:
        return None
    told = stages[0].result
    documents = mapping(told.get("documents"))
    rows = [
        ["to train on", documents.get("train"), told.get("train_bytes")],
        ["held out", documents.get("held_out"), told.get("held_out_bytes")],
        *([f"skipped: {reason}", count, None] for reason, count in mapping(told.get("skipped")).items()),
    ]
    if not mapping(told.get("skipped")):
        rows.append(["skipped", 0, None])
    body = html_table(
        ["documents", "count", "bytes"], [[escape(a), amount(b), amount(c)] for a, b, c in rows]
    )
    sources = array(told.get("sources"))
    note = f"<p>Read from {', '.join(f'<code>{escape(s)}</code>' for s in sources)}.</p>" if sources else ""
    return Figure(
        "corpus",
        "The text, and what was skipped",
        "Documents that could not be read as text are left out and counted here by reason.",
        [Panel("corpus", body, Table(["documents", "count", "bytes"], rows), wide=True)],
        note,
    )


def _counted(run: RunFiles) -> dict[tuple[str, str], int]:
    """(stage, text) of each warning, and how often it came."""
    counts: dict[tuple[str, str], int] = {}
    for line in run.log:
        if line.get("event") == "warning":
            key = (str(line.get("stage") or "run"), str(line.get("text") or ""))
            counts[key] = counts.get(key, 0) + 1
    return counts


def _warnings(run: RunFiles) -> Figure:
    counts = _counted(run)
    items = ""
    for (stage, text), n in counts.items():
        times = f' <span class="dim">({n} times)</span>' if n > 1 else ""
        items += f"<li><strong>{escape(stage)}</strong>: {escape(text, lines=True)}{times}</li>"
    body = f'<ul class="warnings">{items}</ul>' if items else "<p>None.</p>"
    table = Table(["stage", "text", "times"], [[*key, n] for key, n in counts.items()])
    return Figure(
        "warnings",
        "Warnings",
        "Everything that the run complained about, in full; the same warning is shown once with its count.",
        [Panel("warnings", body, table, wide=True)],
    )


def _retries(run: RunFiles) -> Figure | None:
    """What was tried again, summed by name; None where nothing was."""
    keys = ("retries", "recovered", "gave_up", "slept")
    sums: dict[str, list[float]] = {}
    for line in run.log:
        if line.get("event") == "retries":
            row = sums.setdefault(str(line.get("name") or "unnamed"), [0.0] * len(keys))
            for i, key in enumerate(keys):
                row[i] += finite(line.get(key)) or 0.0
    rows = [[name, *values] for name, values in sums.items() if any(values)]
    if not rows:
        return None
    body = html_table(
        ["what", "retries", "recovered", "gave up", "time slept"],
        [[escape(r[0]), *map(amount, r[1:4]), duration(r[4])] for r in rows],
    )
    return Figure(
        "retries",
        "What was tried again",
        "Calls that failed and were repeated: recovered ones succeeded in the end and cost the time slept.",
        [Panel("retries", body, Table(["name", *keys[:3], "seconds_slept"], rows), wide=True)],
    )


def _versions(run: RunFiles) -> Figure | None:
    rows = [[str(k), str(v)] for k, v in run.versions.items() if k != "command"]
    rows += [["seed", str(get(run.recipe, "seed"))]] if get(run.recipe, "seed") is not None else []
    resumed = sum(line.get("event") == "resume" for line in run.log)
    rows += [["resumed", "once" if resumed == 1 else f"{resumed} times"]] if resumed else []
    if not rows:
        return None
    body = html_table(["what", "which"], [[escape(a), escape(b)] for a, b in rows], text=(0, 1))
    return Figure(
        "versions",
        "Versions",
        "The same recipe gives the same bits on the same machine with the same versions and threads.",
        [Panel("versions", body, Table(["what", "which"], rows), wide=True)],
    )
