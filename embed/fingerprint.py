"""What tells whether two processes, or a run and the one that goes on with it, see the same images in the same way.

Both hashes tell of private names: they stay among the processes, and in the custodian's own files.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import PIL
import torch
from PIL import features as decoders

from dpmepf.shared import __version__
from dpmepf.shared.feature_map_description import FeatureMapDescription
from dpmepf.shared.image_source_types import ArrayImageSource, EncodedImageSource, ImageSource
from dpmepf.shared.schema import ImageSchema

if TYPE_CHECKING:
    from dpmepf.embed.pipeline import EmbedSettings

HASHED_IMAGES = 1024  # at a time
DECODERS = ("jpg", "libjpeg_turbo", "libtiff", "webp", "zlib", "zlib_ng")  # that one version of Pillow may come with


def run_fingerprint(
    source: ImageSource,
    schema: ImageSchema,
    feature_map: FeatureMapDescription,
    settings: EmbedSettings,
    persons: npt.NDArray[np.int64] | None,
) -> bytes:
    """SHA-256 of the images' names, labels, persons and order, of the options, and of versions; of arrays, the
    pixels, and of archives and parquet files what they say of the images' places (of zip files, checksums too). For
    processes, which may be on several machines.
    """
    common = (
        *(__version__, torch.__version__, PIL.__version__, schema, feature_map, source.kind, source.split, len(source)),
        *(settings.epsilon, settings.delta, settings.relation, settings.unit_of_privacy, settings.batch_size),
        *(torch.device(settings.device).type, settings.dataset_name, *map(decoders.version, DECODERS)),
    )
    digest = hashlib.sha256(repr(common).encode())
    digest.update(source.labels.tobytes())
    digest.update(b"" if persons is None else persons.tobytes())
    for index in range(len(source)):
        digest.update(source.name(index).encode("utf-8", "surrogateescape") + b"\0")
    if isinstance(source, ArrayImageSource):  # whose names are places: another file has the same
        for start in range(0, len(source.pixels), HASHED_IMAGES):
            digest.update(np.ascontiguousarray(source.pixels[start : start + HASHED_IMAGES]).data)
    elif isinstance(source, EncodedImageSource):  # an archive may have been replaced since it was opened
        digest.update(source.members.directory())
    return digest.digest()


def state_of_files(source: ImageSource) -> bytes:
    """SHA-256 of what the file system says of the files that images are read from, in the order of the images.

    A file that was written to, renamed or put in another's place has another inode, size or time of change.
    """
    digest = hashlib.sha256()
    last = None
    for index in range(len(source)):
        file = source.file(index)
        if file != last:
            last = file
            try:
                found = file.stat()
            except OSError:
                digest.update(b"none")
            else:
                digest.update(repr((found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)).encode())
        digest.update(b"\0")
    return digest.digest()
