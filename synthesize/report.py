"""`report.html`: one file that shows what a run made and what it claims, readable without a network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dpmepf.artifacts.ledger import ONE_IMAGE
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.shared.output_file import replacing
from dpmepf.synthesize.pictures import CURVE_FILE, MOST_LABELLED_ROWS, PREVIEW_FILE

REPORT_FILE = "report.html"
MOST_CLASS_ROWS = 500
MOST_NAMED = 10  # classes in a sentence
WORTH_SAYING = 0.01  # of the images of a class, that were not judged: a few always remain

RELATIONS = {
    "add-or-remove-one": "adding or removing",
    "replace-one": "replacing",
}

STYLE = """
:root { color-scheme: light dark; --text: #1c2430; --soft: #5a6676; --page: #f6f7f9; --card: #ffffff; --line: #dde2e9;
        --accent: #1f4e8c; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e8ee; --soft: #9aa6b5; --page: #12161c; --card: #1b212a; --line: #303945; --accent: #8db8f0; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 .8rem; }
p { margin: .4rem 0; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.5rem 0; }
.tile, section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.tile { padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.35rem; color: var(--accent); font-variant-numeric: tabular-nums;
          overflow-wrap: anywhere; }
.tile span { color: var(--soft); font-size: .85rem; }
section { padding: 1.25rem 1.4rem; margin: 1.1rem 0; }
figure { margin: 0; overflow-x: auto; }
img { max-width: 100%; height: auto; display: block; border-radius: .3rem; background: #fff; }
img.preview { image-rendering: pixelated; }
figcaption { margin-top: .6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: left; padding: .38rem .9rem .38rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
tr:last-child > * { border-bottom: 0; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td { overflow-wrap: anywhere; }
code, pre { font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { overflow-x: auto; margin: .6rem 0 0; padding: .8rem 1rem; border: 1px solid var(--line); border-radius: .4rem; }
"""

SETTING_NAMES = {
    "preset": "Preset",
    "steps": "Steps",
    "batch_size": "Images per step",
    "micro_batch_size": "Images through the encoder at a time",
    "learning_rate": "Learning rate at its peak",
    "warmup_share": "Share of warm-up",
    "average_decay": "Decay of the weight average",
    "gradient_clip": "Largest gradient norm",
    "base_channels": "Base channels",
    "second_convolution": "Second convolution per block",
    "latent_dimension": "Latent dimension",
    "vary": "Random changes of images",
    "mean_memory": "Memory of generated means",
    "metric_ridge": "Ridge of the metric",
    "probe": "Probe of the noise",
    "seed": "Seed",
}


def write_report(folder: Path, record: Mapping[str, Any]) -> None:
    """Write `report.html` from a run's record (`run.json`) and the pictures in `folder`."""
    with replacing(folder / REPORT_FILE) as path:
        path.write_text(_page(record, _data_uri(folder / PREVIEW_FILE), _data_uri(folder / CURVE_FILE)), "utf-8")


def privacy_claim(artifact: Mapping[str, Any]) -> str:
    """Return the release's claim as a sentence."""
    change = RELATIONS.get(artifact["relation"], artifact["relation"])
    unit, number = artifact["unit_of_privacy"], len(artifact["releases"])
    what, condition = "The release these images come from is", ""
    if number > 1:
        what = f"The {number} releases these images come from are together"
        condition = f", if no {unit.removeprefix('one ')} is in two of them, as their custodians say"
        if artifact["relation"] == NeighbouringRelation.REPLACE_ONE.value:
            condition += ", and each is only replaced within its own"
    return (
        f"{what} (ε = {artifact['epsilon']:g}, δ = {artifact['delta']:g})-differentially private for {change} "
        f"{unit}{condition}."
    )


def public_sentence(record: Mapping[str, Any]) -> str:
    """Say how many of a run's images are public ones, from where, and what could not be read."""
    sources = [
        f"{source['chosen']:,} of {source['images']:,} from {source['path']}"
        + (f" ({source['unreadable']:,} unreadable)" if source["unreadable"] else "")
        for source in record["public"]
    ]
    total = sum(source["chosen"] for source in record["public"])
    return f"{total:,} of the images are real public ones, not generated, the last of each class: {', '.join(sources)}."


def prior_sentence(prior: Mapping[str, Any]) -> str:
    """Say of `record["prior"]` what it learned from, and what the claim does not cover therefore."""
    releases = [
        f"release {one['release_id']} of “{one['dataset_name']}” (ε = {one['epsilon']:g}, δ = {one['delta']:g})"
        for one in prior["releases"] or ()
    ]
    return (
        f"Training began with the weights of another generator (SHA-256 {prior['sha256']}), which learned from "
        f"{', '.join(releases) or 'what its folder does not say'}. That is beside the claim: it counts, too, unless it "
        "is of public images."
    )


def sizes_sentence(record: Mapping[str, Any]) -> str:
    """Say what is to be known of the numbers of images, if anything: classes without any, counts of no images."""
    artifact, empty = record["artifact"], [entry["name"] for entry in record["classes"] if not entry["images"]]
    sentences = []
    if empty:
        named = ", ".join(empty[:MOST_NAMED]) + (", …" if len(empty) > MOST_NAMED else "")
        sizes = [entry["size"] for entry in record["classes"] if not entry["images"]]
        why = (
            "by the release they have next to no records (noise in a count: "
            f"{artifact['noise_std_counts']:,.0f}, one standard deviation)"
            if max(sizes) < 1
            else "their share of so few --samples is less than one"
        )
        sentences.append(f"{len(empty):,} of {len(record['classes']):,} classes have no images ({named}): {why}.")
    if artifact["unit_of_privacy"] != ONE_IMAGE:
        sentences.append(
            "Images of a person who has several were weighed down together, so that class sizes are numbers neither of "
            "images nor of persons: --samples draws another number."
        )
    return " ".join(sentences)


def unjudged_sentence(record: Mapping[str, Any]) -> str:
    """Say of which classes not just a few images are unconfirmed by the class means, if of any."""
    counts = {
        entry["name"]: entry["unjudged_images"]
        for entry in record["classes"]
        if entry["unjudged_images"] > WORTH_SAYING * entry["images"]
    }
    if not counts:
        return ""
    named = ", ".join(f"{name} {count:,}" for name, count in list(counts.items())[:MOST_NAMED])
    return (
        f"Of some classes the class means found too few images. {sum(counts.values()):,} have the class that they were "
        f"drawn for, whatever they look like ({named}{', …' if len(counts) > MOST_NAMED else ''}): the generator may "
        "not have learned these classes well."
    )


def _page(record: Mapping[str, Any], preview: str, curve: str) -> str:
    artifact, output, generator = record["artifact"], record["output"], record["generator"]
    classes: Sequence[Mapping[str, Any]] = record["classes"]
    title = f"Synthetic images of “{artifact['dataset_name']}”"
    side, colour = artifact["resolution"], "grey" if artifact["channels"] == 1 else "RGB"
    tiles = (
        (f"{artifact['epsilon']:g}", "ε, privacy loss"),
        (f"{artifact['delta']:g}", "δ, failure probability"),
        (f"{output['images']:,}", "images"),
        (f"{len(classes):,}", "class" if len(classes) == 1 else "classes"),
        (f"{side} × {side}", f"pixels, {colour}"),
        (_duration(record["timings"]["total_seconds"]), f"on {record['device']}"),
    )
    inferred = artifact["inferred_schema"]
    schema_note = (
        f"Read from the form of the data set and treated as public: {', '.join(inferred)}."
        if inferred
        else "Class names, resolution and colour were declared public by the custodian."
    )
    rows_note = (
        "Each row is a class." if 1 < len(classes) <= MOST_LABELLED_ROWS else "Images follow the order of the classes."
    )
    first_note = (
        "Not selected: drawn and labelled as the data set is, which leaves out images of unclear class."
        if output["relabelled"]
        else "Not selected: the first images that the generator drew."
    )
    labels_note = (
        "An image has the class that it was drawn for, or, where the class means say otherwise, the one they say."
        if output["relabelled"]
        else "An image's class is the one that the generator was asked for."
    )
    public_note = (
        f"<p>{escape(public_sentence(record))} They were chosen because they look like the class by the class means, "
        "and have their own terms of use. The picture above shows generated images only.</p>"
        if record["public"]
        else ""
    )
    class_table = _class_table(
        classes,
        artifact["noise_std_counts"],
        with_folders=output["format"] == "folder",
        with_public=bool(record["public"]),
    )
    sizes_note = f"<p>{escape(sentence)}</p>" if (sentence := sizes_sentence(record)) else ""
    sizes_note += f"<p>{escape(sentence)}</p>" if (sentence := unjudged_sentence(record)) else ""
    prior_note = f"<p>{escape(prior_sentence(record['prior']))}</p>\n" if record["prior"] else ""
    used = "but what was released" + (" and that other generator" if record["prior"] else "")
    made = record["settings"] | {"probe": record["probed"]}
    settings = [(SETTING_NAMES.get(name, name), _plain(value)) for name, value in made.items()]
    release = [
        *(
            ("Release", f"{one['release_id']} of “{one['dataset_name']}”, ε = {one['epsilon']:g}, δ = {one['delta']:g}")
            for one in artifact["releases"]
        ),
        ("Mechanism", artifact["mechanism"]),
        ("Neighbouring relation", artifact["relation"]),
        ("Unit of privacy", artifact["unit_of_privacy"]),
        ("Features", f"{artifact['feature_dimension']:,} of {artifact['encoder']} ({artifact['features']})"),
        ("Artifact", f"{artifact['file']}, SHA-256 {artifact['sha256']}"),
    ]
    network = [
        ("Parameters", f"{generator['parameters']:,}"),
        ("Multiply-adds per image", f"{generator['multiply_adds_per_image'] / 1e6:,.1f} million"),
    ]
    if generator["random_changes"]:
        sizes = ", ".join(f"{change} {size:.2f}" for change, size in generator["random_changes"].items())
        network.append(("Size of random changes, mean over classes", sizes))
    rate = record["timings"]["training_images_per_second"]
    timings = [
        ("Training", _duration(record["timings"]["training_seconds"]) + (f", {rate:,.0f} images/s" if rate else "")),
        ("Drawing and writing", _duration(record["timings"]["sampling_seconds"])),
    ]
    versions = [(name, version) for name, version in record["versions"].items()]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p>{escape(privacy_claim(artifact))}</p>
{prior_note}<p class="soft">Training the generator and drawing images used nothing {used}, so they cost no
further privacy. {escape(schema_note)}</p>
<div class="tiles">{_tiles(tiles)}</div>
<section>
<h2>Generated images</h2>
<figure><img class="preview" src="{preview}" alt="A grid of generated images">
<figcaption>{rows_note} {first_note} {labels_note}</figcaption></figure>
</section>
<section>
<h2>Training</h2>
<figure><img src="{curve}" alt="The loss over the training steps">
<figcaption>Distance between the mean features of generated images and those released, averaged over classes. Zero means
as close as the release can tell; below zero, the generator follows the release's noise.</figcaption></figure>
</section>
<section>
<h2>Classes</h2>
{public_note}{sizes_note}
{class_table}
</section>
<section><h2>Release</h2>{_table(release)}</section>
<section><h2>Settings</h2>{_table(settings)}</section>
<section><h2>Generator and time</h2>{_table(network + timings)}</section>
<section><h2>Versions</h2>{_table(versions)}</section>
<section>
<h2>Drawing more</h2>
<p>More images cost no privacy. Those drawn as below are of the class asked for; <code>dpmepf-synth --resume
--samples</code>, with the other options of this run, makes them as for this data set.</p>
<pre>import torch
from pathlib import Path
from dpmepf.synthesize.generator import load_generator

generator, classes = load_generator(Path("."))   # this folder
with torch.inference_mode():
    images = generator(torch.randn(16, {int(record["settings"]["latent_dimension"])}), \
torch.zeros(16, dtype=torch.int64))</pre>
</section>
</main>
</body>
</html>
"""


def _tiles(tiles: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<div class='tile'><b>{escape(big)}</b><span>{escape(small)}</span></div>" for big, small in tiles)


def _class_table(
    classes: Sequence[Mapping[str, Any]], noise_std: float, *, with_folders: bool, with_public: bool
) -> str:
    header = "<tr><th>Class</th>" + ("<th>Folder</th>" if with_folders else "<th>Label</th>")
    header += f"<th class='number'>Noisy count in the release (± {noise_std:,.1f})</th><th class='number'>Images</th>"
    header += ("<th class='number'>Of them public</th>" if with_public else "") + "</tr>"
    rows = [
        f"<tr><td>{escape(entry['name'])}</td>"
        f"<td>{escape('images/' + entry['folder'] if with_folders else str(label))}</td>"
        f"<td class='number'>{entry['noisy_count']:,.1f}</td><td class='number'>{entry['images']:,}</td>"
        + (f"<td class='number'>{entry['public_images']:,}</td>" if with_public else "")
        + "</tr>"
        for label, entry in enumerate(classes[:MOST_CLASS_ROWS])
    ]
    more = len(classes) - len(rows)
    note = f"<p class='soft'>{more:,} more classes are in run.json.</p>" if more else ""
    return f"<div class='scroll'><table>{header}{''.join(rows)}</table></div>{note}"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th scope='row'>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<div class='scroll'><table>{cells}</table></div>"


def _data_uri(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")


def _plain(value: object) -> str:
    if value is None:
        return "the whole batch"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
