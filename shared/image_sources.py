"""From a path to images, by looking at it.

| form | labels | class names unless declared |
| --- | --- | --- |
| folder, zip or tar of class folders | the folder of each image | the folder names, an empty folder included |
| flat folder, zip or tar of images | none | "unlabelled" |
| tar in WebDataset naming | `KEY.cls` beside the image `KEY.png` | to be declared |
| parquet with a column of images | column `label` | those of its ClassLabel (Hugging Face), else to be declared |
| folder of tar or parquet files | as in one, for all together | likewise |
| folder with IDX files, plain or gzipped | the labels file | 0 to 9 under the names of MNIST, else to be declared |
| `.npz` with x and y | y | its array `classes`, else to be declared |
| output folder of dpmepf-synth, if public | as its `images/` or `gen.npz` | likewise |

One private record must not decide how the others are read, so two forms at once are refused. Class names come from the
form of the data, never from which labels occur (the labels of private data are private). For
public data alone, labels of a form without class names tell them: as many as the largest number asks for, or the texts.
"""

from __future__ import annotations

import functools
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dpmepf.shared.array_sources import open_idx, open_npz
from dpmepf.shared.class_names import check_class_names
from dpmepf.shared.file_sources import open_files
from dpmepf.shared.idx_files import find_idx_pairs
from dpmepf.shared.image_errors import (
    AmbiguousLayoutError,
    DataNotFoundError,
    UndeclaredClassError,
    UnreadableDataError,
)
from dpmepf.shared.image_layout import is_image, is_visible, read_layout, require_undivided
from dpmepf.shared.image_source_types import FolderFiles, ImageSource, ZipMembers
from dpmepf.shared.parquet_files import is_parquet
from dpmepf.shared.shard_sources import open_parquets, open_tars
from dpmepf.shared.shards import choose_shards, compressed_tar, find_shards, is_compressed_tar
from dpmepf.shared.tar_files import is_tar

__all__ = ["ImageSource", "UndeclaredClassError", "open_images"]

_FORMS = (
    "expected a folder of class folders, a flat folder of images, a zip or tar of either, tar files in WebDataset "
    "naming, parquet files with a column image, a folder with IDX files, or an .npz with x and y"
)
_ENCRYPTED = 0x1


def open_images(
    path: Path,
    *,
    classes: Sequence[str] | None = None,
    split: str | None = None,
    default_split: str = "train",
    public: bool = False,
    tables_refused: bool = False,
) -> ImageSource:
    """Recognise the form of the data at `path` and open it; no image is decoded.

    Args:
        path: a folder or a file.
        classes: declared class names, in the order of their labels; None to read them from the form of the data.
        split: "train", "test" or "val" of data that are divided so; None takes `default_split`, or the only one.
        default_split: "train" where data are to be learnt from, "test" where they are to be tested on.
        public: whether messages may name files, and labels may tell the number of classes.
        tables_refused: whether a folder or zip of one class, undeclared, is refused if there is a table in it, whose
            labels nobody reads (in tar files a table is often about each image, and none is looked for).

    Raises:
        DataNotFoundError, AmbiguousLayoutError, SplitError, ClassesError: usage, exit status 2.
        UnreadableDataError, LabelError: damaged data, exit status 1.
    """
    declared = None if classes is None else check_class_names(list(classes))
    layout_of = functools.partial(
        read_layout,
        split=split,
        default_split=default_split,
        declared=declared,
        public=public,
        tables_refused=tables_refused,
    )
    if path.is_dir() and public:
        synthetic = _inside_synthetic(path)
        if synthetic is not None:
            path = synthetic
    if path.is_dir():
        files, folders = _scan_folder(path, public)
        pairs = find_idx_pairs(path)
        has_images = any(is_image(name) for name in files)
        shards = find_shards(files, others=has_images or bool(pairs))
        forms = ["IDX files"] * bool(pairs) + list(shards) + ["images"] * has_images
        if len(forms) > 1:
            raise AmbiguousLayoutError(f"{path} holds {' beside '.join(forms)}: keep one of the two there")
        if pairs:
            return open_idx(pairs, declared, split, default_split, public)
        if shards:
            (form, names), *_ = shards.items()
            chosen, of_split = choose_shards(path, names, split=split, default_split=default_split, public=public)
            if form == "parquet files":
                return open_parquets(path, chosen, declared, of_split, public)
            if of_split is not None:
                split, default_split = None, of_split
            return open_tars(path, chosen, declared, split, default_split, public, of_split=of_split)
        return open_files(FolderFiles(path), "folder", layout_of(files, folders), declared, public)
    if not path.is_file():
        raise DataNotFoundError(f"{path} does not exist: {_FORMS}")
    if is_tar(path):
        return open_tars(path, ("",), declared, split, default_split, public)
    if is_compressed_tar(path.name):
        raise compressed_tar()
    if is_parquet(path):
        require_undivided(split)
        return open_parquets(path, ("",), declared, None, public)
    if not zipfile.is_zipfile(path):
        if path.suffix.lower() in (".zip", ".npz"):
            raise UnreadableDataError(f"{path} is truncated or damaged: fetch or pack it again")
        raise DataNotFoundError(f"{path} is of no accepted form: {_FORMS}")
    names = _zip_names(path)
    arrays = any(name.endswith(".npy") for name in names)
    if arrays and any(is_image(name) for name in names):
        raise AmbiguousLayoutError(f"{path} holds arrays beside images: keep one of the two in it")
    if path.suffix.lower() == ".npz" or arrays:
        return open_npz(path, declared, split, default_split, public)
    folders = [name.rstrip("/") for name in names if name.endswith("/")]
    files = [name for name in names if not name.endswith("/")]
    return open_files(ZipMembers(path), "zip", layout_of(files, folders), declared, public)


def _inside_synthetic(path: Path) -> Path | None:
    """The data set inside an output folder of dpmepf-synth, None if `path` is none."""
    has_generator = (path / "generator.safetensors").is_file()
    if not (has_generator or (path / "run.json").is_file()):
        return None
    found = [inner for inner in (path / "images", path / "gen.npz") if inner.exists()]
    if len(found) > 1:
        raise AmbiguousLayoutError(f"{path} holds two data sets: pass {found[0]} or {found[1]}")
    if has_generator and not found:  # its pictures of the training are no data
        raise DataNotFoundError(f"{path} holds a generator but neither images/ nor gen.npz: let dpmepf-synth finish")
    return found[0] if found else None


def _scan_folder(root: Path, public: bool) -> tuple[list[str], list[str]]:
    """Slash-separated relative names of all files and folders; links are followed, but to no folder on the way."""

    def refuse(error: OSError) -> NoReturn:
        raise error  # os.walk would pass over a folder that it may not read

    files, folders = [], []
    ways: dict[Path, tuple[Path, ...]] = {root: (root.resolve(),)}  # to each folder: those on it, as they really are
    for current, inner, names in os.walk(root, followlinks=True, onerror=refuse):
        relative = Path(current).relative_to(root).as_posix()
        prefix = "" if relative == "." else relative + "/"
        way = ways.pop(Path(current))
        targets = {name: Path(current, name).resolve() for name in inner}
        inner[:] = [name for name in inner if not any(folder.is_relative_to(targets[name]) for folder in way)]
        ways |= {Path(current, name): (*way, targets[name]) for name in inner}
        for name in names:
            if not is_image(prefix + name) and is_visible(prefix + name) and not Path(current, name).exists():
                raise UnreadableDataError(
                    "the data hold a link that leads nowhere, which may be a class or more: make it lead to what it "
                    "should, or remove it" + (f" ({prefix + name})" if public else "")
                )
        files += [prefix + name for name in names]
        folders += [prefix + name for name in inner]
    return files, folders


def _zip_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
        raise UnreadableDataError(f"{path} is truncated or damaged: fetch or pack it again") from None
    if any(member.flag_bits & _ENCRYPTED for member in members):
        raise UnreadableDataError(f"{path} is encrypted: unpack it and pass the folder")
    if any("\\" in member.filename for member in members):
        raise UnreadableDataError(f"{path} separates folders by backslashes: unpack it and pass the folder")
    if any({"", ".", ".."} & set(member.filename.removesuffix("/").split("/")) for member in members):
        raise UnreadableDataError(f"{path} has names like /a, a//b or ../a: unpack it and pass the folder")
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise UnreadableDataError(f"{path} holds a name twice: unpack it and pass the folder")
    return names
