"""From logs of runs to docs/RESULTS.md: our measurements and published figures side by side.

What the rows mean and where protocols differ is said in results.template.md.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from string import Template

from published_figures import PUBLISHED
from quality_log import Record, distinct

TEMPLATE = Path(__file__).with_name("results.template.md")
DATA_SETS = ("MNIST", "CIFAR-10")
EPSILONS = (0.2, 1.0, 10.0)
DELTA = 1e-5
CLASSIFIER = "cnn"
METHODS = {
    "ours": "dpmepf",
    "ours-plain": "dpmepf, labels not corrected",
    "dp-merf": "DP-MERF",
    "dp-sgd": "DP-SGD classifier, no synthetic set",
}
RELATIONS = {"add-or-remove-one": "add or remove", "replace-one": "replace"}
NOTHING = "–"
RUNS_HEAD = """\
## The runs

Accuracy in percent. *ε, other* is that of the same release under the other relation. FID and KID compare between rows
whose *features* are the same, and with published ones only where these are Inception's. *Minutes* are those of all but
the scoring and the making of a prior, on the machine named.
"""


def document(records: Iterable[Record]) -> str:
    """The whole of docs/RESULTS.md."""
    runs = distinct(records)
    of_data = {data: [run for run in runs if run["data"] == data] for data in DATA_SETS}
    of_data |= {run["data"]: [other for other in runs if other["data"] == run["data"]] for run in runs}
    accuracy = [f"### {data}\n\n{accuracy_table(data, found)}" for data, found in of_data.items()]
    every = [f"### {data}, all scores\n\n{runs_table(found)}" for data, found in of_data.items() if found]
    text = Template(TEMPLATE.read_text("utf-8")).substitute(
        state=f"{len(runs)} runs are in it."
        if runs
        else "**Nothing is measured yet**: only published figures are in it.",
        accuracy="\n".join(accuracy),
        runs="\n".join([RUNS_HEAD, *every]) if runs else "",
    )
    return text.rstrip() + "\n"


def accuracy_table(data: str, runs: Sequence[Record]) -> str:
    """A row for each method and setting of ours, by the newest code that has runs of it, and one for each published
    method; a column for each ε."""
    epsilons = sorted({*EPSILONS, *(run["epsilon"] for run in runs)})
    head = ["method", "relation", "public images", *(f"ε = {epsilon:g}" for epsilon in epsilons)]
    rows = [["**measured here, by one command**", *[""] * (len(head) - 1)]]
    for of_row in _grouped(runs, _setting_of):
        by_epsilon = [_newest([run for run in of_row if run["epsilon"] == epsilon]) for epsilon in epsilons]
        rows.append(
            [
                _name(of_row[0]),
                RELATIONS[of_row[0]["relation"]],
                _public(of_row[0]),
                *(_accuracy(cell, CLASSIFIER, numbered=True) for cell in by_epsilon),
            ]
        )
    if not runs:
        rows.append(["none yet", *[NOTHING] * (len(head) - 1)])
    rows.append(["**published**", *[""] * (len(head) - 1)])
    for method in PUBLISHED:
        if data in method.accuracy:
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
        return (*_setting_of(run), run["epsilon"], *rest)

    for of_row in _grouped(runs, row_of):
        first = of_row[0]
        other = next(relation for relation in RELATIONS if relation != first["relation"])
        rows.append(
            [
                _name(first),
                RELATIONS[first["relation"]],
                f"{first['epsilon']:g}",
                spread([run["claims"].get(other) for run in of_row], "{:.3g}"),
                *(_accuracy(of_row, name) for name in classifiers),
                spread([run.get("fid") for run in of_row], "{:.3g}"),
                spread([run.get("kid") for run in of_row], "{:.4f}"),
                (first.get("extractor") or NOTHING).partition(",")[0],
                spread([run["minutes"] for run in of_row], "{:.1f}"),
                str(len(of_row)),
                "; ".join(sorted({run["machine"] for run in of_row})),
                first["version"],
            ]
        )
    return markdown([*head, "machine", "code"], rows)


def _setting_of(run: Record) -> tuple[object, ...]:
    """Runs that differ in these are of different things, whatever the code and ε; in the order of rows."""
    return (
        *([*METHODS, run["method"]].index(run["method"]), run["method"]),
        *(run["relation"], run["delta"], str(run["settings"]), run["evaluation"].partition(", on ")[2]),
    )


def _newest(runs: Sequence[Record]) -> list[Record]:
    """Those of the newest code among them, one of each seed."""
    newest = max(runs, key=_age, default=None)
    of_newest = [run for run in runs if newest is not None and run["version"] == newest["version"]]
    return list({run["seed"]: run for run in of_newest}.values())


def _age(run: Record) -> tuple[str, str]:
    """When its code was committed, in UTC, and the version, that runs of one commit keep together."""
    return run["committed"], run["version"]


def _grouped(runs: Sequence[Record], key: Callable[[Record], tuple[object, ...]]) -> list[list[Record]]:
    return [list(group) for _, group in groupby(sorted(runs, key=key), key=key)]


def _name(run: Record) -> str:
    """The method, and the settings that it ran with."""
    settings = run["settings"]
    if run["method"] == "dp-sgd":
        told = f"{settings['passes']} passes, batch {settings['batch_size']:,}"
    else:
        told = f"{settings['preset']}, {settings['steps']:,} steps, {'bfloat16' if settings['bfloat16'] else 'float32'}"
    delta = "" if run["delta"] == DELTA else f", δ = {run['delta']:g}"
    return f"{METHODS.get(run['method'], run['method'])} ({told}{delta})"


def _public(run: Record) -> str:
    """The public images that a run of ours learned from."""
    encoder = ["Tiny ImageNet"] if run["method"].startswith("ours") else []
    chosen = [f"chosen from {', '.join(run['settings']['public'])}"] if "public" in run["settings"] else []
    prior = [f"prior of {run['settings']['prior']}"] if "prior" in run["settings"] else []
    return "; ".join(encoder + chosen + prior) or "none"


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
