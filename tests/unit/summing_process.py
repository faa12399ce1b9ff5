"""One of several processes that torchrun starts: exact sums over the images of DATA, saved to FOLDER by the first.

Once for each unit of privacy; then the second process sees another order of images than the first, or has an encoder
that differs by as little as numbers can, and what each of them makes of that is saved. So are the addresses at which
each can be reached.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from dpmepf.embed.distributed import Processes, joined
from dpmepf.embed.persons import persons_from_folders
from dpmepf.embed.pipeline import EmbedSettings, embed_share, sum_images
from dpmepf.embed.release import mechanism_input
from dpmepf.shared.feature_map import build_feature_map, describe_feature_map
from dpmepf.shared.image_sources import ImageSource, open_images
from dpmepf.shared.processes import ProcessesError
from dpmepf.shared.schema import ImageSchema

UNITS = ("one image", "one person")
SCHEMA = ImageSchema(classes=("healthy", "ill"), resolution=28, channels=1, inferred=())


def exact_sums(
    source: ImageSource, unit: str, processes: Processes | None, *, nudged: bool = False
) -> np.ndarray | None:
    """What the mechanism noises, in the process that releases; None in another."""
    torch.set_num_threads(1)
    feature_map = build_feature_map(describe_feature_map(resolution=28, channels=1))
    if nudged:
        with torch.no_grad():
            for weights in feature_map.parameters():
                weights.copy_(torch.nextafter(weights, torch.tensor(1.0)))
    arguments = {
        "schema": SCHEMA,
        "feature_map": feature_map,
        "settings": EmbedSettings(epsilon=2.0, unit_of_privacy=unit, batch_size=8, workers=0),
        "persons": persons_from_folders(source) if unit == "one person" else None,
        "processes": processes,
    }
    if processes is not None and not processes.first:
        embed_share(source, **arguments)
        return None
    sums = sum_images(source, **arguments)
    if processes is not None:
        processes.collect(sums)
    return mechanism_input(sums.take())


def listening_addresses() -> set[str]:
    """Addresses, as the kernel writes them, at which this process can be reached (Linux)."""
    targets = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    tables = [Path(f"/proc/net/{table}").read_text().splitlines()[1:] for table in ("tcp", "tcp6")]
    sockets = [line.split() for table in tables for line in table]
    return {fields[1].split(":")[0] for fields in sockets if fields[3] == "0A" and f"socket:[{fields[9]}]" in targets}


@joined()
def main(data: str, folder: str) -> None:
    processes = Processes.of_torchrun()
    assert processes is not None
    (Path(folder) / f"addresses {processes.rank}").write_text(" ".join(listening_addresses()))
    source = open_images(Path(data), classes=SCHEMA.classes)
    for unit in UNITS:
        sums = exact_sums(source, unit, processes)
        if sums is not None:
            np.save(Path(folder) / f"{unit}.npy", sums)
    second = processes.rank == 1
    refusals = []
    for seen, nudged in (
        (source, second),
        (source.rearranged(np.arange(len(source))[::-1]) if second else source, False),
    ):
        try:
            exact_sums(seen, "one image", processes, nudged=nudged)
        except ProcessesError as error:
            refusals.append(str(error))
    (Path(folder) / f"refused {processes.rank}").write_text("\n".join(refusals))


if __name__ == "__main__":
    main(*sys.argv[1:])
