"""The form of a tree of files: which are records, and which folders are classes. Names only, nothing is opened.

Rules, in this order, from the top of the tree (a folder or the inside of a zip or tar):

1. Hidden files and folders (a leading dot) and `__MACOSX` do not exist; a record is a file with an image extension.
2. If two or more folders are at the top and all are named as splits (train, test, val and their spellings), one of
   them is entered.
3. If a single folder is at the top, beside no image, and it holds folders but no image, it is a wrapper and is entered.
4. Folders and no image: each folder is a class, an empty one too; a class holds every image below it.
5. Images and no folder: unlabelled. Both at once is ambiguous and refused.

Labels in tables are not read. Where that must not be overlooked (`tables_refused`), images of one class, undeclared,
with a table among them or in a folder beside them are refused.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass

from dpmepf.shared.class_names import UNLABELLED
from dpmepf.shared.image_decoding import EXTENSIONS
from dpmepf.shared.image_errors import AmbiguousLayoutError, DataNotFoundError, SplitError, UnreadableDataError

_DEEPEST = 32  # folders above an image or folder; names in a hostile archive can hold many thousands
_TABLES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".xls", ".xlsx"})
_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "t10k": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Records and class folders of a tree.

    `class_folders` is None for an unlabelled tree; otherwise `folder_numbers[i]` is the class folder of `files[i]`.
    `entered` is the path, with a closing slash, of the wrappers and split that were entered: every file begins with it.
    """

    files: tuple[str, ...]
    entered: str
    class_folders: tuple[str, ...] | None
    folder_numbers: tuple[int, ...]
    split: str | None


def canonical_split(name: str) -> str | None:
    """The split that a folder or file prefix names: "training" is "train"; None if it names none."""
    return _SPLITS.get(name.lower())


def choose_split(found: dict[str, str], wanted: str | None, default: str, *, public: bool = True) -> str:
    """Choose one of the splits `found` (canonical name to folder): the wanted, else the default, else the only one.

    The only one of private data (`public` off) is not taken in the default's place.
    """
    if wanted is not None:
        canonical = canonical_split(wanted) or wanted
        if not found:
            require_undivided(wanted)
        if canonical not in found:
            raise SplitError(f"the data have no split {wanted!r}: choose --split {_listed(found)}")
        return canonical
    if default in found:
        return default
    if len(found) == 1:
        only = next(iter(found))
        if not public:
            require_default(only, default)
        return only
    raise SplitError(f"the data are divided: choose --split {_listed(found)}")


def require_undivided(wanted: str | None) -> None:
    """Refuse to look for a split of data that have none."""
    if wanted is not None:
        raise SplitError(f"the data are not divided into train and test: leave out --split {wanted}")


def require_default(found: str | None, default: str) -> None:
    """Refuse another split of private data than the default, unless it was asked for."""
    if found not in (None, default):
        raise SplitError(f"the data hold only the split {found!r}: confirm it with --split {found}")


def read_layout(
    files: Iterable[str],
    folders: Iterable[str],
    *,
    split: str | None,
    default_split: str,
    declared: tuple[str, ...] | None = None,
    public: bool = True,
    tables_refused: bool = False,
) -> Layout:
    """Apply the rules above to slash-separated relative paths of files and folders.

    One private record must not decide how the others are read. So a folder named as a declared class is that class,
    never a wrapper or a split, whatever lies in it; and where the default split is missing from private data, none is
    taken in its place.

    Raises:
        DataNotFoundError: no image and no folder.
        AmbiguousLayoutError: images beside folders, two folders for one split (train and training), or what may be a
            table of labels.
        SplitError: the asked split is absent.
        UnreadableDataError: an image or folder lies too deep.
    """
    files = tuple(files)
    images = sorted(name for name in files if is_image(name))
    inner_folders = {name for name in folders if is_visible(name)}
    if any(name.count("/") > _DEEPEST for name in (*images, *inner_folders)):
        raise UnreadableDataError(
            f"the data hold an image or folder more than {_DEEPEST} folders deep: unpack them and pass one further down"
        )
    for name in (*images, *inner_folders):  # an archive need not list all folders, nor those above one that it lists
        while (name := name.rpartition("/")[0]) and name not in inner_folders:
            inner_folders.add(name)
    wanted, found_split, prefix = split, None, ""
    while True:
        at_top = [name for name in images if "/" not in name[len(prefix) :]]
        tops = sorted(name for name in _below(inner_folders, prefix) if "/" not in name)
        if at_top or not tops:
            break
        if declared is not None and any(top in declared for top in tops):
            break
        splits = {canonical_split(top): top for top in tops}
        if len(tops) > 1 and None not in splits and found_split is None:
            if len(splits) < len(tops):
                raise AmbiguousLayoutError(
                    f"the data hold two folders for one split ({', '.join(tops)}): put their images into one"
                )
            found_split = choose_split({str(key): top for key, top in splits.items()}, wanted, default_split)
            entered = splits[found_split]
        elif len(tops) == 1 and _is_wrapper(prefix + tops[0] + "/", images, inner_folders):
            found_split = found_split or canonical_split(tops[0])
            entered = tops[0]
        else:
            break
        prefix += entered + "/"
        images = [name for name in images if name.startswith(prefix)]
    if not public and wanted is None:
        require_default(found_split, default_split)
    if wanted is not None and (canonical_split(wanted) or wanted) != found_split:
        choose_split({found_split: found_split} if found_split else {}, wanted, default_split)
    if at_top and tops:
        raise AmbiguousLayoutError(
            "the data hold images beside folders, so labels are unclear: put every image into a class folder, or keep "
            "images only"
        )
    if not at_top and not tops:
        raise DataNotFoundError(
            f"the data hold no image: expected files with the endings {', '.join(sorted(EXTENSIONS))}, in class "
            "folders or in a flat folder"
            + (", but found an .npz file: name that itself" if any(name.endswith(".npz") for name in files) else "")
        )
    if tables_refused and declared is None:
        _refuse_table_of_one_class(files, images, prefix, tops)
    if at_top:
        return Layout(
            files=tuple(images),
            entered=prefix,
            class_folders=None,
            folder_numbers=(0,) * len(images),
            split=found_split,
        )
    number = {top: index for index, top in enumerate(tops)}
    numbers = tuple(number[name[len(prefix) :].partition("/")[0]] for name in images)
    return Layout(
        files=tuple(images), entered=prefix, class_folders=tuple(tops), folder_numbers=numbers, split=found_split
    )


def _refuse_table_of_one_class(files: tuple[str, ...], images: list[str], prefix: str, tops: list[str]) -> None:
    """Refuse images of one class with what may be a table of labels; `prefix` is above the class folders `tops`."""
    tables = [name for name in files if _may_hold_labels(name)]
    of_tables = {name[len(prefix) :].partition("/")[0] for name in tables if name.startswith(prefix)}
    of_images = {name[len(prefix) :].partition("/")[0] for name in images}
    if tables and len(set(tops) - (of_tables - of_images)) < 2:
        raise AmbiguousLayoutError(
            "the data hold one class and a table, whose labels are not read: put every image into the folder of its "
            "class, or make an .npz of images x and labels y; if there is one class, declare it with --classes"
            + ("" if tops else f" {UNLABELLED}")
        )


def is_image(name: str) -> bool:
    """Whether the file of this slash-separated name is a record (rule 1)."""
    return posixpath.splitext(name)[1].lower() in EXTENSIONS and is_visible(name)


def is_visible(name: str) -> bool:
    """Whether neither the file of this slash-separated name nor a folder on the way to it is hidden (rule 1)."""
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _may_hold_labels(name: str) -> bool:
    stem, ending = posixpath.splitext(posixpath.basename(name).lower())
    return is_visible(name) and (ending in _TABLES or (ending == ".txt" and "label" in stem))


def _below(folders: set[str], prefix: str) -> list[str]:
    return [name[len(prefix) :] for name in folders if name.startswith(prefix) and name != prefix]


def _is_wrapper(prefix: str, images: list[str], folders: set[str]) -> bool:
    holds_image = any("/" not in name[len(prefix) :] for name in images if name.startswith(prefix))
    return not holds_image and bool(_below(folders, prefix))


def _listed(found: dict[str, str]) -> str:
    return " or ".join(sorted(found))
