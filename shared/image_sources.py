"""From a path to images, by looking at it.

| form | labels | class names unless declared |
| --- | --- | --- |
| folder or zip of class folders | the folder of each image | the folder names, an empty folder included |
| flat folder or zip of images | none | "unlabelled" |
| folder with IDX files, plain or gzipped | the labels file | 0 to 9 under the names of MNIST, else to be declared |
| `.npz` with x and y | y | its array `classes`, else to be declared |
| output folder of dpmepf-synth, if public | as its `images/` or `gen.npz` | likewise |

One private record must not decide how the others are read, so two forms at once are refused. Class names come from the
form of the data, never from which labels occur (the labels of private data are private). For
public data alone, an `.npz` without class names is taken to have as many as its largest label asks for.
"""

from __future__ import annotations

import functools
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from dpmepf.shared.class_names import UNLABELLED, check_class_names, numbered_classes
from dpmepf.shared.idx_files import IdxPair, find_idx_pairs, read_idx_images, read_idx_labels
from dpmepf.shared.image_errors import (
    AmbiguousLayoutError,
    ClassesError,
    DataNotFoundError,
    LocatedError,
    SplitError,
    UnreadableDataError,
)
from dpmepf.shared.image_layout import Layout, choose_split, is_image, read_layout
from dpmepf.shared.image_source_types import (
    ArrayImageSource,
    EncodedImageSource,
    FolderFiles,
    ImageSource,
    ZipMembers,
)
from dpmepf.shared.npz_files import find_npz_splits, read_npz_classes, read_npz_images, read_npz_labels

__all__ = ["ImageSource", "UndeclaredClassError", "open_images"]

_FORMS = (
    "expected a folder of class folders, a flat folder of images, a zip of either, a folder with IDX files, or an .npz "
    "with x and y"
)
_ENCRYPTED = 0x1


class UndeclaredClassError(LocatedError, ClassesError):
    """A class folder is not among the declared classes."""


def open_images(
    path: Path,
    *,
    classes: Sequence[str] | None = None,
    split: str | None = None,
    default_split: str = "train",
    public: bool = False,
) -> ImageSource:
    """Recognise the form of the data at `path` and open it; no image is decoded.

    Args:
        path: a folder or a file.
        classes: declared class names, in the order of their labels; None to read them from the form of the data.
        split: "train", "test" or "val" of data that are divided so; None takes `default_split`, or the only one.
        default_split: "train" where data are to be learnt from, "test" where they are to be tested on.
        public: whether messages may name files, and labels may tell the number of classes.

    Raises:
        DataNotFoundError, AmbiguousLayoutError, SplitError, ClassesError: usage, exit status 2.
        UnreadableDataError, LabelError: damaged data, exit status 1.
    """
    declared = None if classes is None else check_class_names(list(classes))
    if path.is_dir() and public:
        synthetic = _inside_synthetic(path)
        if synthetic is not None:
            path = synthetic
    if path.is_dir():
        files, folders = _scan_folder(path)
        pairs = find_idx_pairs(path)
        if pairs:
            if any(is_image(name) for name in files):
                raise AmbiguousLayoutError(f"{path} holds IDX files beside images: keep one of the two there")
            return _open_idx(pairs, declared, split, default_split, public)
        layout = read_layout(files, folders, split=split, default_split=default_split, declared=declared, public=public)
        return _open_files(FolderFiles(path), "folder", layout, declared, public)
    if not path.is_file():
        raise DataNotFoundError(f"{path} does not exist: {_FORMS}")
    if not zipfile.is_zipfile(path):
        if path.suffix.lower() in (".zip", ".npz"):
            raise UnreadableDataError(f"{path} is truncated or damaged: fetch or pack it again")
        raise DataNotFoundError(f"{path} is of no accepted form: {_FORMS}")
    names = _zip_names(path)
    arrays = any(name.endswith(".npy") for name in names)
    if arrays and any(is_image(name) for name in names):
        raise AmbiguousLayoutError(f"{path} holds arrays beside images: keep one of the two in it")
    if path.suffix.lower() == ".npz" or arrays:
        return _open_npz(path, declared, split, default_split, public)
    folders = [name.rstrip("/") for name in names if name.endswith("/")]
    files = [name for name in names if not name.endswith("/")]
    layout = read_layout(files, folders, split=split, default_split=default_split, declared=declared, public=public)
    return _open_files(ZipMembers(path), "zip", layout, declared, public)


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


def _scan_folder(root: Path) -> tuple[list[str], list[str]]:
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


def _open_files(
    members: FolderFiles | ZipMembers, container: str, layout: Layout, declared: tuple[str, ...] | None, public: bool
) -> ImageSource:
    if layout.class_folders is None:
        if declared is not None and len(declared) > 1:
            raise ClassesError("several classes are declared, but the images are in no class folders: declare one")
        kind, classes, labels = f"flat {container}", declared or (UNLABELLED,), [0] * len(layout.files)
    else:
        kind, classes = (
            f"{container} of class folders",
            declared or check_class_names(layout.class_folders, quoted=public),
        )
        number = {name: label for label, name in enumerate(classes)}
        for folder in layout.class_folders:
            if folder not in number:
                raise UndeclaredClassError(
                    "a class folder is not among the declared classes: add it to --classes, or move it away",
                    location=f"{members.root}: {folder!a}",
                    public=public,
                )
        labels = [number[layout.class_folders[folder]] for folder in layout.folder_numbers]
    return EncodedImageSource(
        members=members,
        names=layout.files,
        entered=layout.entered,
        kind=kind,
        classes=classes,
        classes_declared=declared is not None,
        labels=np.array(labels, np.int64),
        split=layout.split,
        public=public,
    )


def _open_idx(
    pairs: dict[str, IdxPair], declared: tuple[str, ...] | None, split: str | None, default_split: str, public: bool
) -> ImageSource:
    chosen = choose_split({name: name for name in pairs}, split, default_split)
    pair = pairs[chosen]
    if declared is None and not pair.conventional:
        raise _undeclared("IDX files")
    open_pixels = functools.partial(read_idx_images, pair.images)
    pixels = open_pixels()
    return ArrayImageSource(
        path=pair.images,
        pixels=pixels,
        open_pixels=open_pixels,
        kind="folder with IDX files",
        classes=declared or numbered_classes(10),
        classes_declared=declared is not None,
        labels=read_idx_labels(pair.labels, count=len(pixels)),
        split=chosen,
        public=public,
    )


def _open_npz(
    path: Path, declared: tuple[str, ...] | None, split: str | None, default_split: str, public: bool
) -> ImageSource:
    splits = find_npz_splits(path)
    if None in splits:
        if split is not None:
            raise SplitError(f"the data are not divided into train and test: leave out --split {split}")
        chosen = None
    else:
        chosen = choose_split({str(name): str(name) for name in splits}, split, default_split)
    images_name, labels_name = splits[chosen]
    open_pixels = functools.partial(read_npz_images, path, images_name)
    pixels = open_pixels()
    count = len(pixels)
    stored = read_npz_classes(path)
    if labels_name is None:
        if declared is not None and len(declared) > 1:
            raise ClassesError("several classes are declared, but the file holds no labels y: declare one class")
        labels, classes = np.zeros(count, np.int64), declared or (UNLABELLED,)
    else:
        labels = read_npz_labels(path, labels_name, count=count)
        if declared is not None:
            classes = declared
        elif stored is not None:
            classes = check_class_names(stored, quoted=public)
        elif public:
            classes = numbered_classes(int(labels.max(initial=0)) + 1)
        else:
            raise _undeclared("an .npz without an array `classes`")
    return ArrayImageSource(
        path=path,
        pixels=pixels,
        open_pixels=open_pixels,
        kind="npz file",
        classes=classes,
        classes_declared=declared is not None,
        labels=labels,
        split=chosen,
        public=public,
    )


def _undeclared(form: str) -> ClassesError:
    return ClassesError(
        f"{form} cannot tell the classes, and which labels occur is private: declare them, for example --classes 10 "
        "(labels 0 to 9) or --classes cat,dog"
    )
