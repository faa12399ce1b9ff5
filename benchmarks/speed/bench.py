"""How fast and how large everything is, against what bounds it: both sides in one run. Run by `make bench`.

Five parts: embedding, release, synthesis, how the cost grows, and how much of what the machine can is used. Sides of a
ratio alternate; a row has the least, middle and largest figure over the repeats, and the verdict is the median's. Peaks
of embedding, and cost against records, are of one run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import ceiling_part
import embed_part
import release_part
import scaling_part
import synth_part
from measuring import machine
from rich.console import Console
from sizes import default_sizes, quick_sizes

from dpmepf.shared.allocator import keep_freed_memory
from dpmepf.shared.devices import choose_device

PARTS = {
    "embed": embed_part.measure,
    "release": release_part.measure,
    "synth": synth_part.measure,
    "scaling": scaling_part.measure,
    "ceilings": ceiling_part.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="parts to measure")
    parser.add_argument("--device", default="auto", help="where encoder and generator run: auto, cpu, cuda or cuda:N")
    parser.add_argument("--quick", action="store_true", help="next to nothing, once: whether it works, not how fast")
    parser.add_argument("--repeats", type=int, default=3, help="turns of every side")
    parser.add_argument("--full", action="store_true", help="up to 1,000,000 records instead of 100,000: longer")
    parser.add_argument(
        "--mnist", type=Path, default=Path("../shared/data/MNIST"), help="folder with MNIST's IDX files"
    )
    parser.add_argument("--json", action="store_true", help="print what the tables hold to stdout, as JSON")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats is 1 or more")
    keep_freed_memory()  # as every command does: for bare sides too, which would be slower without
    records = 1_000_000 if arguments.full else 100_000
    device = str(choose_device(arguments.device))
    sizes = default_sizes(device=device, repeats=arguments.repeats, records=records, mnist=arguments.mnist)
    if arguments.quick:
        sizes = quick_sizes(device=device)
    console = Console(stderr=True, width=120)
    if hasattr(os, "getloadavg"):
        console.print(f"{os.getloadavg()[0]:.1f} other processes running: figures are of a quiet machine only near 0")
    results, begun = [], time.perf_counter()
    for name in arguments.only:
        for part in PARTS[name](sizes, lambda text: console.print(text, style="dim")):
            if part.rows:
                console.print(part.table(machine(device)))
            else:
                console.print(part.title, *part.notes, sep="\n")
            results.append(part.to_dict())
    console.print(f"{(time.perf_counter() - begun) / 60:.1f} minutes")
    if arguments.json:
        sys.stdout.write(json.dumps({"machine": machine(device), "parts": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
