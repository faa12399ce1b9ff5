"""What the schema of a parquet file says: which column holds images, which labels, and how the classes are called.

The column of images is called `image`, or is the only one that the file's Hugging Face metadata declares as `Image`:
bytes, or a struct with `bytes` in it, whose `path` is never followed. The column of labels, whole numbers or text, is
likewise `label` or the only `ClassLabel`, whose class names are in the metadata.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from dpmepf.shared.image_errors import (
    AmbiguousLayoutError,
    DataNotFoundError,
    MissingLibraryError,
    UnreadableDataError,
)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What the schema of a parquet file says. `images` is the path of the column's bytes; `classes` those of labels."""

    images: str
    labels: str | None
    labels_are_text: bool
    classes: tuple[str, ...] | None


def pyarrow_library() -> ModuleType:
    """pyarrow, which only parquet files need: it is loaded with the first."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingLibraryError(
            "parquet files are read by pyarrow, which is not installed: pip install 'dpmepf[parquet]'"
        ) from None
    return pyarrow


def read_columns(schema: Any) -> Columns:
    """The columns to read by an Arrow schema.

    Raises:
        DataNotFoundError: there is no column of images.
        AmbiguousLayoutError: several columns could be meant.
        UnreadableDataError: labels or class names are of a type that is none of the above.
    """
    pyarrow = pyarrow_library()
    types = pyarrow.types
    features = _features(schema.metadata)
    image = _column(schema.names, features, "image", "Image")
    if image is None:
        raise DataNotFoundError("a parquet file has no column `image`: expected one with the bytes of image files")
    kind, leaf = schema.field(image).type, image
    if types.is_struct(kind) and [field.name for field in kind].count("bytes") == 1:
        kind, leaf = kind.field("bytes").type, f"{image}.bytes"
    if not (types.is_binary(kind) or types.is_large_binary(kind)):
        raise DataNotFoundError(
            "the column `image` of a parquet file holds no bytes of image files: write them into it"
        )
    label = _column(schema.names, features, "label", "ClassLabel")
    if label is None:
        return Columns(images=leaf, labels=None, labels_are_text=False, classes=None)
    kind = schema.field(label).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    is_text = types.is_string(kind) or types.is_large_string(kind)
    if not is_text and not types.is_integer(kind):
        raise UnreadableDataError(
            "the column `label` of a parquet file must hold one whole number or text for each image"
        )
    names = features.get(label, {}).get("names")
    if is_text or names is None:
        return Columns(images=leaf, labels=label, labels_are_text=is_text, classes=None)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UnreadableDataError(
            "the class names in the metadata of a parquet file are no list of texts: write it again"
        )
    return Columns(images=leaf, labels=label, labels_are_text=False, classes=tuple(names))


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, dict[str, Any]]:
    """What Hugging Face's `datasets` says of each column, nothing if it did not write the file."""
    try:
        found = json.loads((metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _column(names: list[str], features: dict[str, dict[str, Any]], usual: str, kind: str) -> str | None:
    """The column called `usual`, or the only one of a kind."""
    found = [usual] if usual in names else [name for name in names if features.get(name, {}).get("_type") == kind]
    if len(found) > 1 or names.count(found[0] if found else usual) > 1:
        raise AmbiguousLayoutError(f"a parquet file has several columns of kind {kind}: call the one to read `{usual}`")
    return found[0] if found else None
