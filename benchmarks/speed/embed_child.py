"""The whole of `dpmepf-embed` on a synthetic set, as one process whose peak memory can be measured.

The command itself takes no encoder with random weights. The argument is one JSON object; so is what is printed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from encoders_at_hand import feature_map_of

from dpmepf.artifacts.hdf5_file import write_artifact
from dpmepf.embed.pipeline import EmbedSettings, embed_images
from dpmepf.shared.allocator import keep_freed_memory
from dpmepf.shared.image_sources import open_images
from dpmepf.shared.schema import infer_schema


def main() -> None:
    arguments = json.loads(sys.argv[1])
    torch.set_num_threads(arguments["threads"])
    keep_freed_memory()  # as the command does
    source = open_images(Path(arguments["data"]))
    schema = infer_schema(source)
    device = arguments["device"]
    feature_map = feature_map_of(arguments["encoder"], schema.resolution, schema.channels, device=device)
    times: list[float] = []
    artifact = embed_images(
        source,
        schema=schema,
        feature_map=feature_map,
        settings=EmbedSettings(epsilon=2.0, batch_size=arguments["batch"], device=device),
        on_images=lambda _: times.append(time.perf_counter()),
    )
    end = time.perf_counter()
    write_artifact(Path(arguments["output"]), artifact, force=True)
    result = {"noise_seconds": end - times[-1], "embedding_seconds": times[-1] - times[0]}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
