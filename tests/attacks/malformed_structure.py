"""Ways to build an HDF5 file wrongly: links, objects, attributes, storage, filters, types and shapes.

Whatever leads out of the file leads to the folder `outside` beside it, which exists and holds what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dpmepf.artifacts import errors
from dpmepf.shared.errors import DpmepfError

CLASSES, DIMENSION = ("a", "b", "c"), 64
OUTSIDE = "outside"
FILTERS: dict[str, Any] = {"shuffle": True, "compression": "gzip"}

Malformation = tuple[Callable[[h5py.File], None], type[DpmepfError], str]
"""What it does, the error, and what its message has to match."""


def outside_file(file: h5py.File) -> str:
    return str(Path(file.filename).parent / OUTSIDE / "secret.h5")


def text_type(length: int) -> np.dtype[Any]:
    return h5py.string_dtype("utf-8", length)


def put_sums(file: h5py.File, **settings: Any) -> h5py.Dataset:
    del file["noisy_sums"]
    defaults: dict[str, Any] = {"shape": (3, DIMENSION), "dtype": "<i8", "chunks": (1, DIMENSION)} | FILTERS
    settings = {name: value for name, value in (defaults | settings).items() if value is not None}
    return file.create_dataset("noisy_sums", **settings)


def put_counts(file: h5py.File, **settings: Any) -> h5py.Dataset:
    del file["noisy_counts"]
    return file.create_dataset("noisy_counts", **settings)


def put_classes(file: h5py.File, **settings: Any) -> None:
    del file["classes"]
    file.create_dataset("classes", **settings)


def external_link(file: h5py.File) -> None:
    del file["classes"]
    file["classes"] = h5py.ExternalLink(outside_file(file), "/classes")


def external_link_to_the_ledger(file: h5py.File) -> None:
    del file["ledger"]
    file["ledger"] = h5py.ExternalLink(outside_file(file), "/ledger")


def external_link_that_nobody_needs(file: h5py.File) -> None:
    file["more"] = h5py.ExternalLink(outside_file(file), "/")


def link_on_an_intermediate_path(file: h5py.File) -> None:
    del file["noisy_sums"], file["classes"]
    file["classes"] = h5py.ExternalLink(outside_file(file), "/")
    file["noisy_sums"] = h5py.SoftLink("/classes/noisy_sums")


def intermediate_link_to_the_ledger(file: h5py.File) -> None:
    del file["ledger"]
    file["further"] = h5py.ExternalLink(outside_file(file), "/")
    file["ledger"] = h5py.SoftLink("/further/ledger")


def soft_link(file: h5py.File) -> None:
    del file["classes"]
    file["classes"] = h5py.SoftLink("/feature_map")


def soft_link_to_itself(file: h5py.File) -> None:
    del file["classes"]
    file["classes"] = h5py.SoftLink("/classes")


def soft_link_through_a_group(file: h5py.File) -> None:
    file["classes_too"] = h5py.SoftLink("/x/y/z")


def one_object_twice(file: h5py.File) -> None:
    del file["feature_map"]
    file["feature_map"] = file["classes"]


def extra_group(file: h5py.File) -> None:
    file.create_group("notes")


def groups_nested_deeply(file: h5py.File) -> None:
    file.create_group("/".join(["deeper"] * 3000))


def group_that_holds_itself(file: h5py.File) -> None:
    file["again"] = file["/"]


def extra_dataset(file: h5py.File) -> None:
    file["record_count"] = 60000


def extra_dataset_with_a_hostile_name(file: h5py.File) -> None:
    file["\x1b[2Jevil\n"] = 1


def extra_dataset_with_an_oversized_name(file: h5py.File) -> None:
    file["n" * 60_000] = 1


def thousands_of_extra_links(file: h5py.File) -> None:
    for number in range(3000):
        file[f"a{number}"] = h5py.ExternalLink(outside_file(file), "/")


def named_type(file: h5py.File) -> None:
    file["a_type"] = np.dtype("<i8")


def group_in_place_of_a_dataset(file: h5py.File) -> None:
    del file["noisy_sums"]
    file.create_group("noisy_sums")


def root_attribute(file: h5py.File) -> None:
    file.attrs["created"] = "yesterday"


def dataset_attribute(file: h5py.File) -> None:
    file["noisy_counts"].attrs["true_counts"] = [1, 2, 3]


def object_reference_attribute(file: h5py.File) -> None:
    file["noisy_sums"].attrs.create("link", file.ref, dtype=h5py.ref_dtype)


def attributes_in_a_heap(file: h5py.File) -> None:
    for number in range(20):
        file["noisy_counts"].attrs[f"note{number}"] = "patient"


def missing_dataset(file: h5py.File) -> None:
    del file["noisy_counts"]


def external_storage(file: h5py.File) -> None:
    put_counts(file, shape=(3,), dtype="<i8", external=[(outside_file(file), 0, 24)])


def virtual_dataset(file: h5py.File) -> None:
    del file["noisy_sums"]
    layout = h5py.VirtualLayout(shape=(3, DIMENSION), dtype="<i8")
    layout[:] = h5py.VirtualSource(outside_file(file), "noisy_sums", shape=(3, DIMENSION))
    file.create_virtual_dataset("noisy_sums", layout)


def virtual_counts(file: h5py.File) -> None:
    del file["noisy_counts"]
    layout = h5py.VirtualLayout(shape=(3,), dtype="<i8")
    layout[:] = h5py.VirtualSource(outside_file(file), "noisy_counts", shape=(3,))
    file.create_virtual_dataset("noisy_counts", layout)


def shape_bomb(file: h5py.File) -> None:
    put_sums(file, shape=(100_000, 2**22), chunks=(1, 2**22))


def count_bomb(file: h5py.File) -> None:
    put_counts(file, shape=(2**40,), dtype="<i8")


def empty_sums(file: h5py.File) -> None:
    put_sums(file, shape=(0, DIMENSION), chunks=None, shuffle=None, compression=None)


def compression_bomb(file: h5py.File) -> None:
    put_sums(file, shape=(4, 2**20), chunks=(1, 2**20))[:] = 0


def rows_never_stored(file: h5py.File) -> None:
    put_sums(file)[0] = np.arange(DIMENSION)


def other_chunks(file: h5py.File) -> None:
    put_sums(file, chunks=(3, DIMENSION))[:] = 1


def contiguous_sums(file: h5py.File) -> None:
    put_sums(file, chunks=None, shuffle=None, compression=None)[:] = 1


def unallocated_counts(file: h5py.File) -> None:
    put_counts(file, shape=(3,), dtype="<i8")


def filter_of_others(file: h5py.File) -> None:
    put_sums(file, compression="lzf")[:] = 1


def unknown_filter(file: h5py.File) -> None:
    sums = put_sums(file, compression=32_099, allow_unknown_filter=True)
    for row in range(3):
        sums.id.write_direct_chunk((row, 0), b"instructions for a filter that nobody has")


def additional_filter(file: h5py.File) -> None:
    put_sums(file, fletcher32=True)[:] = 1


def scale_offset_filter(file: h5py.File) -> None:
    put_sums(file, compression=None, shuffle=None, scaleoffset=0)[:] = 1


def filtered_counts(file: h5py.File) -> None:
    put_counts(file, data=np.zeros(3, "<i8"), chunks=(3,), **FILTERS)


def float_sums(file: h5py.File) -> None:
    put_sums(file, dtype="<f8")[:] = np.nan


def big_endian_sums(file: h5py.File) -> None:
    put_sums(file, dtype=">i8")[:] = 1


def object_references(file: h5py.File) -> None:
    put_counts(file, data=[file.ref] * 3, dtype=h5py.ref_dtype)


def region_references(file: h5py.File) -> None:
    put_classes(file, data=file["noisy_counts"].regionref[:2], dtype=h5py.regionref_dtype)


def variable_length_text(file: h5py.File) -> None:
    put_classes(file, data='["a", "b", "c"]', dtype=h5py.string_dtype())


def ascii_text(file: h5py.File) -> None:
    put_classes(file, data=np.array(b'["a", "b", "c"]'))


def committed_type(file: h5py.File) -> None:
    file["t"] = np.dtype("<i8")
    put_counts(file, data=[1, 2, 3], dtype=file["t"])
    del file["t"]


def text_vector(file: h5py.File) -> None:
    put_classes(file, data=np.array([b"a", b"b"], dtype=text_type(1)))


def sums_of_rank_3(file: h5py.File) -> None:
    put_sums(file, shape=(3, DIMENSION, 1), chunks=(1, DIMENSION, 1))


def extensible_sums(file: h5py.File) -> None:
    put_sums(file, maxshape=(None, DIMENSION))[:] = 1


def more_counts_than_classes(file: h5py.File) -> None:
    put_counts(file, data=np.arange(4))


STRUCTURE: list[Malformation] = [
    (external_link, errors.ExternalLinkError, "'classes'"),
    (external_link_to_the_ledger, errors.ExternalLinkError, "'ledger'"),
    (external_link_that_nobody_needs, errors.ExternalLinkError, "'more'"),
    (link_on_an_intermediate_path, errors.ExternalLinkError, "'classes'"),
    (intermediate_link_to_the_ledger, errors.ExternalLinkError, "'further'"),
    (soft_link, errors.SoftLinkError, "'classes'"),
    (soft_link_to_itself, errors.SoftLinkError, "'classes'"),
    (soft_link_through_a_group, errors.SoftLinkError, "'classes_too'"),
    (one_object_twice, errors.SharedObjectError, "classes|feature_map"),
    (extra_group, errors.UndeclaredObjectError, "'notes': an artifact has no such object"),
    (groups_nested_deeply, errors.UndeclaredObjectError, "'deeper': an artifact has no such"),
    (group_that_holds_itself, errors.UndeclaredObjectError, "'again': an artifact has no such"),
    (extra_dataset, errors.UndeclaredObjectError, "'record_count': an artifact has no such"),
    (extra_dataset_with_a_hostile_name, errors.UndeclaredObjectError, r"x1b\[2Jevil"),
    (extra_dataset_with_an_oversized_name, errors.UndeclaredObjectError, "'n{80}': an artifact has no such"),
    (thousands_of_extra_links, errors.UndeclaredObjectError, "a heap of links"),
    (named_type, errors.UndeclaredObjectError, "'a_type'.*object"),
    (group_in_place_of_a_dataset, errors.UndeclaredObjectError, "noisy_sums: expected a data set"),
    (root_attribute, errors.UndeclaredAttributeError, "root group.*'created'"),
    (dataset_attribute, errors.UndeclaredAttributeError, "noisy_counts.*'true_counts'"),
    (object_reference_attribute, errors.UndeclaredAttributeError, "noisy_sums.*'link'"),
    (attributes_in_a_heap, errors.UndeclaredAttributeError, "noisy_counts: .*attribute"),
    (missing_dataset, errors.MissingObjectError, "noisy_counts: there is no such data set"),
    (external_storage, errors.ExternalStorageError, "noisy_counts"),
    (virtual_dataset, errors.VirtualDatasetError, "noisy_sums"),
    (virtual_counts, errors.VirtualDatasetError, "noisy_counts"),
    (shape_bomb, errors.OversizeError, "noisy_sums: the shape 100000 x 4194304"),
    (count_bomb, errors.OversizeError, "noisy_counts: 1099511627776 classes"),
    (empty_sums, errors.OversizeError, "noisy_sums: the shape 0 x 64"),
    (compression_bomb, errors.CompressionBombError, "noisy_sums.*cannot be noise"),
    (rows_never_stored, errors.StorageLayoutError, "noisy_sums: some rows are not stored"),
    (other_chunks, errors.StorageLayoutError, "noisy_sums: expected one chunk for each row"),
    (contiguous_sums, errors.StorageLayoutError, "noisy_sums: expected one chunk for each row"),
    (unallocated_counts, errors.StorageLayoutError, "noisy_counts: expected 24 bytes stored in one piece"),
    (filter_of_others, errors.FilterError, r"noisy_sums: the filters \[2, 32000\]"),
    (unknown_filter, errors.FilterError, r"noisy_sums: the filters \[2, 32099\]"),
    (additional_filter, errors.FilterError, r"noisy_sums: the filters \[2, 1, 3\]"),
    (scale_offset_filter, errors.FilterError, r"noisy_sums: the filters \[6\]"),
    (filtered_counts, errors.FilterError, "noisy_counts: expected no filter"),
    (float_sums, errors.ElementTypeError, "noisy_sums: expected little-endian 64-bit integers"),
    (big_endian_sums, errors.ElementTypeError, "noisy_sums: expected little-endian 64-bit integers"),
    (object_references, errors.ElementTypeError, "noisy_counts: expected little-endian 64-bit integers"),
    (region_references, errors.ElementTypeError, "classes: expected a string of fixed length"),
    (variable_length_text, errors.ElementTypeError, "classes: expected a string of fixed length"),
    (ascii_text, errors.ElementTypeError, "classes: expected null-padded UTF-8"),
    (committed_type, errors.ElementTypeError, "noisy_counts: its type is a named object"),
    (text_vector, errors.ShapeError, "classes: expected a single text"),
    (sums_of_rank_3, errors.ShapeError, r"noisy_sums: expected 2 dimension\(s\)"),
    (extensible_sums, errors.StorageLayoutError, "noisy_sums: its values are not found by a list"),
    (more_counts_than_classes, errors.ShapeError, "noisy_counts: 4 rows for 3 classes"),
]
