"""The same few images as a folder, a zip, and every form of tar and parquet files, in the same order."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("cat", "dog", "eel")  # of which the last has no image
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def images(count: int = 9, side: int = 20) -> list[tuple[str, int, bytes]]:
    """Name, label and PNG of each image, class by class."""
    generator = np.random.default_rng(7)
    found = []
    for index in range(count):
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (side, side, 3), np.uint8)).save(buffer, "PNG")
        found.append((f"{index:03}", 2 * index // count, buffer.getvalue()))
    return found


def write_tar(path: Path, members: Iterable[tuple[str, bytes | None]], **options: Any) -> Path:
    """`members`: names and contents; a folder has none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            member.size = len(data or b"")
            archive.addfile(member, io.BytesIO(data or b""))
    return path


def write_parquet(
    path: Path,
    data: list[bytes | None],
    labels: Any = None,
    *,
    classes: tuple[str, ...] | None = None,
    columns: tuple[str, str] = ("image", "label"),
    plain: bool = False,
    row_group_size: int = 4,
    **options: Any,
) -> Path:
    """Images as Hugging Face's `datasets` writes them, or `plain` bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = data if plain else [None if one is None else {"bytes": one, "path": "x.png"} for one in data]
    arrays: dict[str, Any] = {columns[0]: pa.array(values, pa.binary() if plain else STRUCT)}
    features: dict[str, Any] = {columns[0]: {"_type": "Image"}}
    if labels is not None:
        arrays[columns[1]] = labels if isinstance(labels, pa.Array) else pa.array(labels)
        features[columns[1]] = {"names": list(classes), "_type": "ClassLabel"} if classes else {"_type": "Value"}
    table = pa.table(arrays).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=row_group_size, **options)
    return path


def webdataset(some: Iterable[tuple[str, int, bytes]], *, names: bool = False) -> list[tuple[str, bytes | None]]:
    return [
        member
        for key, label, data in some
        for member in (
            (f"{key}.png", data),
            (f"{key}.cls", (CLASSES[label] if names else f"{label}\n").encode()),
            (f"{key}.json", b"{}"),
        )
    ]


def class_folders(some: Iterable[tuple[str, int, bytes]], *, prefix: str = "") -> list[tuple[str, bytes | None]]:
    folders: list[tuple[str, bytes | None]] = [(f"{prefix}{name}", None) for name in CLASSES]
    return [*folders, *((f"{prefix}{CLASSES[label]}/{name}.png", data) for name, label, data in some)]


def write_folder(root: Path, some: Iterable[tuple[str, int, bytes]]) -> Path:
    for name, data in class_folders(some):
        path = root / name
        path.mkdir(parents=True, exist_ok=True) if data is None else path.write_bytes(data)
    return root


def write_form(root: Path, form: str) -> Path:
    """The images in a form of `FORMS` below `root`."""
    some = images()
    data, labels = [one for _, _, one in some], [label for _, label, _ in some]
    match form:
        case "folder":
            return write_folder(root / "data", some)
        case "tar":
            return write_tar(root / "data.tar", class_folders(some))
        case "tar of .":
            return write_tar(
                root / "data.tar", [(".", None), *class_folders(some, prefix="./")], format=tarfile.GNU_FORMAT
            )
        case "tars of class folders":
            write_tar(root / "data" / "b.tar", class_folders(some[4:]))
            write_tar(root / "data" / "a.tar", class_folders(some[:4]))
        case "WebDataset":
            return write_tar(root / "data.tar", webdataset(some))
        case "WebDataset shards":
            write_tar(root / "data" / "x-train-0000.tar", webdataset(some[:5]))
            write_tar(root / "data" / "x-train-0001.tar", webdataset(some[5:], names=True))
            write_tar(root / "data" / "x-val-0000.tar", webdataset(some[:2]))
        case "WebDataset split folders":
            write_tar(root / "data" / "train" / "0.tar", webdataset(some))
            write_tar(root / "data" / "test" / "0.tar", webdataset(some[:1]))
        case "parquet":
            return write_parquet(root / "data.parquet", list(data), labels, classes=CLASSES)
        case "parquet of bytes":
            return write_parquet(root / "data.parquet", list(data), labels, plain=True)
        case "parquet of names":
            names = pa.array([CLASSES[label] for label in labels]).dictionary_encode()
            return write_parquet(root / "data.parquet", list(data), names)
        case "parquet shards":
            for part in (0, 1):
                write_parquet(
                    root / "data" / "data" / f"train-0000{part}-of-00002.parquet",
                    [*data[:6]] if part == 0 else [*data[6:]],
                    labels[:6] if part == 0 else labels[6:],
                    classes=CLASSES,
                    columns=("img", "fine_label"),
                )
            write_parquet(root / "data" / "data" / "test-00000-of-00001.parquet", [*data[:1]], [0], classes=CLASSES)
    return root / "data"


TARS = (
    "tar",
    "tar of .",
    "tars of class folders",
    "WebDataset",
    "WebDataset shards",
    "WebDataset split folders",
)
PARQUETS = ("parquet", "parquet of bytes", "parquet of names", "parquet shards")


def tar_members(path: Path) -> Mapping[str, tarfile.TarInfo]:
    with tarfile.open(path) as archive:
        return {member.name: member for member in archive}
