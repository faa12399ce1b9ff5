"""From logs of runs to docs/RESULTS.md and docs/RESULTS_HISTORY.md: our measurements beside published figures.

What the rows mean and where protocols differ is said in results.template.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from string import Template

from published_figures import NO_PUBLIC, PUBLISHED, PublishedMethod
from quality_log import Record, distinct

TEMPLATE = Path(__file__).with_name("results.template.md")
HISTORY_TEMPLATE = Path(__file__).with_name("results_history.template.md")
DATA_SETS = ("MNIST", "CIFAR-10")
EPSILONS = (0.2, 1.0, 10.0)
DELTA = 1e-5
CLASSIFIER = "cnn"
METHODS = {
    "ours": "dpmepf",
    "ours-plain": "dpmepf, labels not corrected",
    "dp-merf": "DP-MERF",
    "dp-sgd": "DP-SGD classifier, no synthetic set",
    "real": "the private images themselves, no privacy",
}
RELATIONS = {"add-or-remove-one": "add or remove", "replace-one": "replace"}
NOTHING = "–"

CURRENT_SINCE = "2026-11-30T16:12:14+00:00"
"""Commit time of the code (6c1d21ef9f) whose images later code has changed by no more than chance.

Whoever changes what is released, or what `dpmepf-synth` makes of it, moves this; runs of code before stand in the
history.
"""
OTHERS_CURRENT_SINCE = {"dp-merf": "2026-11-29T12:42:29+00:00", "dp-sgd": "", "real": ""}
"""Of methods that do not use our features; DP-MERF's generator is today's since bc369bfd8c."""

DP_MERF_OF_COLOUR_SINCE = "2026-11-30T04:18:00+00:00"  # without changes at random, which grey images never had
GREY = ("MNIST", "Fashion-MNIST", "CIFAR-10-grey")


def document(records: Iterable[Record]) -> str:
    """The whole of docs/RESULTS.md: runs of current code."""
    logged = distinct(records)
    runs = [run for run in logged if is_current(run)]
    of_data = {data: [run for run in runs if run["data"] == data] for data in DATA_SETS}
    of_data |= {run["data"]: [other for other in runs if other["data"] == run["data"]] for run in runs}
    accuracy = [f"### {data}\n\n{accuracy_table(data, found)}" for data, found in of_data.items()]
    every = [f"### {data}, all scores\n\n{runs_table(found)}" for data, found in of_data.items() if found]
    text = Template(TEMPLATE.read_text("utf-8")).substitute(
        summary="".join(summary(data, found) for data, found in of_data.items())
        or "**Nothing is measured yet**: only published figures are in it.\n",
        count=f"{len(runs)} runs are in it, {len(logged) - len(runs)} of earlier code in RESULTS_HISTORY.md.",
        accuracy="\n".join(accuracy),
        runs="\n".join(every),
    )
    return text.rstrip() + "\n"


def history(records: Iterable[Record]) -> str:
    """The whole of docs/RESULTS_HISTORY.md: runs of code before."""
    runs = [run for run in distinct(records) if not is_current(run)]
    tables = [
        f"## {data}\n\n{runs_table([run for run in runs if run['data'] == data])}"
        for data in sorted({run["data"] for run in runs}, reverse=True)
    ]
    text = Template(HISTORY_TEMPLATE.read_text("utf-8")).substitute(runs="\n".join(tables))
    return text.rstrip() + "\n"


def is_current(run: Record) -> bool:
    """Whether the code of a run makes what today's makes, but for chance."""
    since = OTHERS_CURRENT_SINCE.get(run["method"], CURRENT_SINCE)
    if run["method"] == "dp-merf" and run["data"] not in GREY:
        since = DP_MERF_OF_COLOUR_SINCE
    return run["committed"] >= since


def summary(data: str, runs: Sequence[Record]) -> str:
    """For each ε a line: our accuracy, and the published ones that are higher, or else the highest; "" without runs.

    Ours is that of the setting of most runs, and of the longest training among these.
    """
    lines = []
    published = [method for method in PUBLISHED if data in method.accuracy]
    as_said = [run for run in runs if run["method"] == "ours" and _is_plain(run)]
    for epsilon in EPSILONS:
        rows = _grouped([run for run in as_said if run["epsilon"] == epsilon], _setting_of)
        if not rows:
            continue
        row = max(rows, key=lambda of_row: (len(of_row), _settings(of_row[0])["steps"]))
        ours = 100 * statistics.fmean(run["accuracy"][CLASSIFIER] for run in row)
        of_epsilon = [method for method in published if epsilon in method.accuracy[data]]
        of_epsilon.sort(key=lambda method: method.accuracy[data][epsilon], reverse=True)
        higher = [method for method in of_epsilon if method.accuracy[data][epsilon] >= ours]
        told = ""
        if higher:
            told = f"; higher are {_listed(higher, data, epsilon)}"
        elif of_epsilon:
            told = f"; the highest published is {_listed(of_epsilon[:1], data, epsilon)}"
        without = [method for method in of_epsilon if method.public == NO_PUBLIC]
        if without and without[0] not in (higher or of_epsilon[:1]):
            told += f"; the highest without public images is {_listed(without[:1], data, epsilon)}"
        lines.append(f"- {data}, ε = {epsilon:g}: **{ours:.1f} %** (n = {len(row)}){told}.\n")
    return "".join(lines)


def _is_plain(run: Record) -> bool:
    """Whether a run is of what the document says of all that it names without saying more."""
    usual = run["relation"] == "add-or-remove-one" and run["delta"] == DELTA
    return usual and not _beside_the_encoder(run) and not _tested_on(run)


def _listed(methods: Sequence[PublishedMethod], data: str, epsilon: float) -> str:
    return ", ".join(f"{method.name} {method.accuracy[data][epsilon]:.1f}" for method in methods)


def accuracy_table(data: str, runs: Sequence[Record]) -> str:
    """A row for each method and setting of ours, and one for each published method; a column for each ε."""
    epsilons = sorted({*EPSILONS, *(run["epsilon"] for run in runs)}, key=_as_number)
    head = ["method", "relation", "public images", *map(_column, epsilons)]
    rows = [["**measured here**", *[""] * (len(head) - 1)]]
    for of_row in _grouped(runs, _setting_of):
        by_epsilon = [[run for run in of_row if run["epsilon"] == epsilon] for epsilon in epsilons]
        rows.append(
            [
                _name(of_row[0]),
                _relation(of_row[0]),
                _public(of_row[0]),
                *(_accuracy(cell, CLASSIFIER, numbered=True) for cell in by_epsilon),
            ]
        )
    measured = {run["method"] for run in runs}
    rows += [
        [f"{name}: not measured yet", *[NOTHING] * (len(head) - 1)]
        for method, name in METHODS.items()
        if method not in measured
    ]
    published = [method for method in PUBLISHED if data in method.accuracy]
    if published:
        rows.append(["**published**", *[""] * (len(head) - 1)])
    for method in published:
        figures = [method.accuracy[data].get(epsilon) for epsilon in epsilons]
        cells = [NOTHING if figure is None else f"{figure:.1f}" for figure in figures]
        rows.append([method.name, method.relation, method.public, *cells])
    return markdown(head, rows)


def runs_table(runs: Sequence[Record]) -> str:
    """Every score, one row for each method, setting, ε and version of the code, the newest first."""
    classifiers = list(dict.fromkeys(name for run in runs for name in run["accuracy"]))
    head = ["method", "relation", "ε", "ε, other", *classifiers, "FID", "KID", "features", "minutes", "runs"]
    rows = []
    versions = list(dict.fromkeys(run["version"] for run in sorted(runs, key=_age, reverse=True)))

    def row_of(run: Record) -> tuple[object, ...]:
        rest = (versions.index(run["version"]), run["evaluation"], run.get("extractor") or "")
        return (*_setting_of(run), _as_number(run["epsilon"]), *rest)

    for of_row in _grouped(runs, row_of):
        first = of_row[0]
        other = next(relation for relation in RELATIONS if relation != first["relation"])
        beside = _beside_the_encoder(first)
        rows.append(
            [
                f"{_name(first)}; {beside}" if beside else _name(first),
                _relation(first),
                NOTHING if first["epsilon"] is None else f"{first['epsilon']:g}",
                spread([run["claims"].get(other) for run in of_row], "{:.3g}"),
                *(_accuracy(of_row, name) for name in classifiers),
                spread([run.get("fid") for run in of_row], "{:.3g}"),
                spread([run.get("kid") for run in of_row], "{:.4f}"),
                (first.get("extractor") or NOTHING).partition(",")[0],
                spread([run["minutes"] for run in of_row], "{:.1f}"),
                str(len(of_row)),
                "; ".join(sorted({run["machine"].partition(", torch")[0] for run in of_row})),
                first["version"].partition(" ")[2] or first["version"],
            ]
        )
    return markdown([*head, "machine", "code"], rows)


def _setting_of(run: Record) -> tuple[object, ...]:
    """Runs that differ in these are of different things, whatever the code and ε; in the order of rows."""
    settings = _settings(run)
    if settings.get("preset") == "best" and "steps" in settings:  # which differ in their steps alone
        settings["preset"] = "standard"
    return (
        *([*METHODS, run["method"]].index(run["method"]), run["method"]),
        *(str(run["relation"]), run["delta"] or 0.0, str(settings), _tested_on(run)),
    )


def _settings(run: Record) -> Record:
    """Those that it was made with: of a preset the number of steps that it took."""
    made = {"steps": run["steps_made"]} if "steps_made" in run else {}
    return {**run["settings"], **made}


def _tested_on(run: Record) -> str:
    return str(run["evaluation"].partition(", on ")[2])


def _age(run: Record) -> tuple[str, str]:
    """When its code was committed, in UTC, and the version, that runs of one commit keep together."""
    return run["committed"], run["version"]


def _grouped(runs: Sequence[Record], key: Callable[[Record], tuple[object, ...]]) -> list[list[Record]]:
    return [list(group) for _, group in groupby(sorted(runs, key=key), key=key)]


def _as_number(epsilon: float | None) -> float:
    return float("inf") if epsilon is None else epsilon


def _column(epsilon: float | None) -> str:
    return "no privacy" if epsilon is None else f"ε = {epsilon:g}"


def _relation(run: Record) -> str:
    return RELATIONS.get(run["relation"], NOTHING)


def _name(run: Record) -> str:
    """The method, and the settings that it ran with."""
    settings = _settings(run)
    if run["method"] == "dp-sgd":
        groups = settings.get("groups", 32)  # as Opacus' own replacement of batch norm, before there was a choice
        norm = f"norm of {groups} group{'s' if groups > 1 else ''}"
        told = [f"{settings['passes']} passes, batch {settings['batch_size']:,}, {norm}"]
    elif run["method"] == "real":
        told = []
    else:
        precision = "bfloat16" if settings["bfloat16"] else "float32"
        told = ["quick"] * (settings["preset"] == "quick") + [f"{settings['steps']:,} steps", precision]
    told += [] if run["delta"] in (DELTA, None) else [f"δ = {run['delta']:g}"]
    told += [f"tested on {_tested_on(run)}"] if _tested_on(run) else []
    name = METHODS.get(run["method"], run["method"])
    return f"{name} ({', '.join(told)})" if told else name


def _beside_the_encoder(run: Record) -> str:
    """The public images that a run of ours learned from besides those of the encoder."""
    chosen = [f"chosen from {', '.join(run['settings']['public'])}"] if "public" in run["settings"] else []
    prior = [f"prior of {run['settings']['prior']}"] if "prior" in run["settings"] else []
    return "; ".join(chosen + prior)


def _public(run: Record) -> str:
    """The public images that a run learned from."""
    encoder = ["Tiny ImageNet"] if run["method"].startswith("ours") else []
    beside = _beside_the_encoder(run)
    return "; ".join(encoder + [beside] * bool(beside)) or NO_PUBLIC


def _accuracy(runs: Sequence[Record], classifier: str, *, numbered: bool = False) -> str:
    figure = spread([run["accuracy"].get(classifier) for run in runs], "{:.1f}", factor=100)
    return f"{figure} (n = {len(runs)})" if numbered and figure != NOTHING else figure


def spread(values: Sequence[float | None], form: str, *, factor: float = 1.0) -> str:
    """Mean ± sample standard deviation; the mean alone where all are the same; a dash where one is missing."""
    known = [factor * value for value in values if value is not None]
    if not known or len(known) < len(values):
        return NOTHING
    deviation = f" ± {form.format(statistics.stdev(known))}" if len(set(known)) > 1 else ""
    return form.format(statistics.fmean(known)) + deviation


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
