"""Hostile artifact files: each malformation has its own error, raised before anything it could harm."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dpmepf.artifacts import errors
from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.hdf5_file import read_artifact, write_artifact
from dpmepf.artifacts.ledger import plan_release
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.shared.errors import DpmepfError
from dpmepf.shared.feature_map import FeatureMapDescription, FeatureMapError

DIMENSION, CLASSES = 64, ("a", "b", "c")
VERSION = ("v110", "v110")
FILTERS: dict[str, Any] = {"shuffle": True, "compression": "gzip"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ledger = plan_release(
        epsilon=1.0,
        delta=1e-5,
        relation=NeighbouringRelation.ADD_OR_REMOVE_ONE,
        feature_dimension=DIMENSION,
        class_count=len(CLASSES),
        non_negative_features=True,
    )
    noise = np.random.default_rng(0)
    artifact = Artifact(
        noisy_sums=noise.integers(-60, 60, (len(CLASSES), DIMENSION)),
        noisy_counts=noise.integers(-60, 60, len(CLASSES)),
        classes=CLASSES,
        feature_map=FeatureMapDescription(
            preset="default",
            encoder="builtin",
            weights_sha256="0" * 64,
            layers=("stage1",),
            pooling=4,
            normalisation="per-layer",
            moments=(1,),
            layer_weights=(1.0,),
            resolution=32,
            channels=3,
            pixel_mean=(0.5, 0.5, 0.5),
            pixel_std=(0.25, 0.25, 0.25),
        ),
        ledger=ledger,
    )
    write_artifact(tmp_path / "a.h5", artifact)
    return tmp_path / "a.h5"


def text_type(length: int) -> np.dtype[Any]:
    return h5py.string_dtype("utf-8", length)


def put_text(file: h5py.File, name: str, text: str | bytes) -> None:
    content = text.encode() if isinstance(text, str) else text
    del file[name]
    file.create_dataset(name, data=np.array(content, dtype=text_type(len(content))))


def put_sums(file: h5py.File, **settings: Any) -> h5py.Dataset:
    del file["noisy_sums"]
    defaults: dict[str, Any] = {"shape": (3, DIMENSION), "dtype": "<i8", "chunks": (1, DIMENSION)} | FILTERS
    settings = {name: value for name, value in (defaults | settings).items() if value is not None}
    return file.create_dataset("noisy_sums", **settings)


def external_link(file: h5py.File) -> None:
    del file["classes"]
    file["classes"] = h5py.ExternalLink("/etc/hostname", "/classes")


def soft_link(file: h5py.File) -> None:
    del file["classes"]
    file["classes"] = h5py.SoftLink("/feature_map")


def soft_link_through_a_group(file: h5py.File) -> None:
    file["classes_too"] = h5py.SoftLink("/x/y/z")


def user_defined_extra_link(file: h5py.File) -> None:
    file["more"] = h5py.ExternalLink("other.h5", "/")


def one_object_twice(file: h5py.File) -> None:
    del file["feature_map"]
    file["feature_map"] = file["classes"]


def extra_group(file: h5py.File) -> None:
    file.create_group("notes/deep/er")


def extra_dataset(file: h5py.File) -> None:
    file["record_count"] = 60000


def extra_dataset_with_a_hostile_name(file: h5py.File) -> None:
    file["\x1b[2Jevil\n"] = 1


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


def missing_dataset(file: h5py.File) -> None:
    del file["noisy_counts"]


def external_storage(file: h5py.File) -> None:
    del file["noisy_counts"]
    file.create_dataset("noisy_counts", shape=(3,), dtype="<i8", external=[("/etc/passwd", 0, 24)])


def virtual_dataset(file: h5py.File) -> None:
    del file["noisy_sums"]
    layout = h5py.VirtualLayout(shape=(3, DIMENSION), dtype="<i8")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "sums", shape=(3, DIMENSION))
    file.create_virtual_dataset("noisy_sums", layout)


def shape_bomb(file: h5py.File) -> None:
    put_sums(file, shape=(100_000, 2**22), chunks=(1, 2**22))


def count_bomb(file: h5py.File) -> None:
    del file["noisy_counts"]
    file.create_dataset("noisy_counts", shape=(2**40,), dtype="<i8")


def empty_sums(file: h5py.File) -> None:
    put_sums(file, shape=(0, DIMENSION), chunks=None, shuffle=None, compression=None)


def compression_bomb(file: h5py.File) -> None:
    put_sums(file, shape=(4, 2**20), chunks=(1, 2**20))[:] = 0


def rows_never_stored(file: h5py.File) -> None:
    put_sums(file)[0] = np.arange(DIMENSION)


def unknown_filter(file: h5py.File) -> None:
    put_sums(file, compression="lzf")[:] = 1


def additional_filter(file: h5py.File) -> None:
    put_sums(file, fletcher32=True)[:] = 1


def scale_offset_filter(file: h5py.File) -> None:
    put_sums(file, compression=None, shuffle=None, scaleoffset=0)[:] = 1


def filtered_counts(file: h5py.File) -> None:
    del file["noisy_counts"]
    file.create_dataset("noisy_counts", data=np.zeros(3, "<i8"), chunks=(3,), **FILTERS)


def other_chunks(file: h5py.File) -> None:
    put_sums(file, chunks=(3, DIMENSION))[:] = 1


def contiguous_sums(file: h5py.File) -> None:
    put_sums(file, chunks=None, shuffle=None, compression=None)[:] = 1


def unallocated_counts(file: h5py.File) -> None:
    del file["noisy_counts"]
    file.create_dataset("noisy_counts", shape=(3,), dtype="<i8")


def float_sums(file: h5py.File) -> None:
    put_sums(file, dtype="<f8")[:] = np.nan


def big_endian_sums(file: h5py.File) -> None:
    put_sums(file, dtype=">i8")[:] = 1


def reference_counts(file: h5py.File) -> None:
    del file["noisy_counts"]
    file.create_dataset("noisy_counts", data=[file.ref] * 3, dtype=h5py.ref_dtype)


def region_reference_text(file: h5py.File) -> None:
    del file["classes"]
    file.create_dataset("classes", data=file["noisy_counts"].regionref[:2], dtype=h5py.regionref_dtype)


def variable_length_text(file: h5py.File) -> None:
    del file["classes"]
    file.create_dataset("classes", data='["a", "b", "c"]', dtype=h5py.string_dtype())


def ascii_text(file: h5py.File) -> None:
    del file["classes"]
    file.create_dataset("classes", data=np.array(b'["a", "b", "c"]'))


def committed_type(file: h5py.File) -> None:
    del file["noisy_counts"]
    file["t"] = np.dtype("<i8")
    file.create_dataset("noisy_counts", data=[1, 2, 3], dtype=file["t"])
    del file["t"]


def text_vector(file: h5py.File) -> None:
    del file["classes"]
    file.create_dataset("classes", data=np.array([b"a", b"b"], dtype=text_type(1)))


def sums_of_rank_3(file: h5py.File) -> None:
    put_sums(file, shape=(3, DIMENSION, 1), chunks=(1, DIMENSION, 1))


def extensible_sums(file: h5py.File) -> None:
    put_sums(file, maxshape=(None, DIMENSION))[:] = 1


def more_counts_than_classes(file: h5py.File) -> None:
    del file["noisy_counts"]
    file["noisy_counts"] = np.arange(4)


def oversized_ledger(file: h5py.File) -> None:
    put_text(file, "ledger", "{" + " " * 2**20 + "}")


def oversized_classes(file: h5py.File) -> None:
    del file["classes"]
    file.create_dataset("classes", shape=(), dtype=text_type(2**26))


def duplicate_class(file: h5py.File) -> None:
    put_text(file, "classes", '["a", "b", "a"]')


def path_as_class(file: h5py.File) -> None:
    put_text(file, "classes", '["a", "b", "../../.ssh/authorized_keys"]')


def control_characters_in_a_class(file: h5py.File) -> None:
    put_text(file, "classes", json.dumps(["a", "b", "\x1b]0;owned\x07"]))


def surrogate_in_a_class(file: h5py.File) -> None:
    put_text(file, "classes", '["a", "b", "\\ud800"]')


def classes_that_are_numbers(file: h5py.File) -> None:
    put_text(file, "classes", "[1, 2, 3]")


def nested_json(file: h5py.File) -> None:
    put_text(file, "feature_map", "[" * 200_000)


def text_that_is_not_utf8(file: h5py.File) -> None:
    put_text(file, "classes", b'["a", "b", "\xff"]')


def ledger_change(**changes: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        put_text(file, "ledger", json.dumps(json.loads(file["ledger"][()]) | changes))

    return change


def nan_in_the_ledger(file: h5py.File) -> None:
    ledger_change(sigma=float("nan"))(file)


def overflowing_number_in_the_ledger(file: h5py.File) -> None:
    put_text(file, "ledger", file["ledger"][()].replace(b'"delta": 1e-05', b'"delta": 1e-05, "epsilon": 1e999', 1))


def malformed_feature_map(file: h5py.File) -> None:
    put_text(file, "feature_map", file["feature_map"][()].replace(b'"pooling": 4', b'"pooling": -4'))


def values_no_sum_can_have(file: h5py.File) -> None:
    file["noisy_counts"][...] = np.iinfo(np.int64).max


def row_that_inflates_too_far(file: h5py.File) -> None:
    file["noisy_sums"].id.write_direct_chunk((1, 0), zlib.compress(bytes(2**16)))


def row_that_inflates_too_little(file: h5py.File) -> None:
    file["noisy_sums"].id.write_direct_chunk((1, 0), zlib.compress(bytes(8)))


def row_with_bytes_after_its_end(file: h5py.File) -> None:
    _, stored = file["noisy_sums"].id.read_direct_chunk((1, 0))
    file["noisy_sums"].id.write_direct_chunk((1, 0), stored + b"secret")


def row_that_is_no_deflate_stream(file: h5py.File) -> None:
    file["noisy_sums"].id.write_direct_chunk((1, 0), b"garbage")


def row_that_skips_a_filter(file: h5py.File) -> None:
    file["noisy_sums"].id.write_direct_chunk((1, 0), zlib.compress(bytes(8 * DIMENSION)), filter_mask=1)


def row_far_larger_than_declared(file: h5py.File) -> None:
    file["noisy_sums"].id.write_direct_chunk((1, 0), random.Random(0).randbytes(2**20))


MALFORMATIONS: list[tuple[Callable[[h5py.File], None], type[DpmepfError], str]] = [
    (external_link, errors.ExternalLinkError, "classes"),
    (soft_link, errors.SoftLinkError, "classes"),
    (soft_link_through_a_group, errors.SoftLinkError, "classes_too"),
    (user_defined_extra_link, errors.ExternalLinkError, "more"),
    (one_object_twice, errors.SharedObjectError, "feature_map|classes"),
    (extra_group, errors.UndeclaredObjectError, "notes.*group"),
    (extra_dataset, errors.UndeclaredObjectError, "record_count.*data set"),
    (extra_dataset_with_a_hostile_name, errors.UndeclaredObjectError, r"x1b\[2Jevil"),
    (named_type, errors.UndeclaredObjectError, "a_type"),
    (group_in_place_of_a_dataset, errors.UndeclaredObjectError, "noisy_sums"),
    (root_attribute, errors.UndeclaredAttributeError, "root group.*created"),
    (dataset_attribute, errors.UndeclaredAttributeError, "noisy_counts.*true_counts"),
    (object_reference_attribute, errors.UndeclaredAttributeError, "noisy_sums.*link"),
    (missing_dataset, errors.MissingObjectError, "noisy_counts"),
    (external_storage, errors.ExternalStorageError, "noisy_counts"),
    (virtual_dataset, errors.VirtualDatasetError, "noisy_sums"),
    (shape_bomb, errors.OversizeError, "noisy_sums"),
    (count_bomb, errors.OversizeError, "noisy_counts"),
    (empty_sums, errors.OversizeError, "noisy_sums"),
    (compression_bomb, errors.CompressionBombError, "noisy_sums"),
    (row_far_larger_than_declared, errors.CompressionBombError, "noisy_sums"),
    (rows_never_stored, errors.StorageLayoutError, "noisy_sums"),
    (other_chunks, errors.StorageLayoutError, "noisy_sums"),
    (contiguous_sums, errors.StorageLayoutError, "noisy_sums"),
    (unallocated_counts, errors.StorageLayoutError, "noisy_counts"),
    (unknown_filter, errors.FilterError, "noisy_sums"),
    (additional_filter, errors.FilterError, "noisy_sums"),
    (scale_offset_filter, errors.FilterError, "noisy_sums"),
    (filtered_counts, errors.FilterError, "noisy_counts"),
    (float_sums, errors.ElementTypeError, "noisy_sums"),
    (big_endian_sums, errors.ElementTypeError, "noisy_sums"),
    (reference_counts, errors.ElementTypeError, "noisy_counts"),
    (region_reference_text, errors.ElementTypeError, "classes"),
    (variable_length_text, errors.ElementTypeError, "classes"),
    (ascii_text, errors.ElementTypeError, "classes"),
    (committed_type, errors.ElementTypeError, "noisy_counts"),
    (text_vector, errors.ShapeError, "classes"),
    (sums_of_rank_3, errors.ShapeError, "noisy_sums"),
    (extensible_sums, errors.ShapeError, "noisy_sums"),
    (more_counts_than_classes, errors.ShapeError, "noisy_counts"),
    (oversized_ledger, errors.OversizeError, "ledger"),
    (oversized_classes, errors.OversizeError, "classes"),
    (duplicate_class, errors.ClassNamesError, "classes"),
    (path_as_class, errors.ClassNamesError, "classes"),
    (control_characters_in_a_class, errors.ClassNamesError, "classes"),
    (surrogate_in_a_class, errors.ClassNamesError, "classes"),
    (classes_that_are_numbers, errors.TextError, "classes"),
    (nested_json, errors.TextError, "feature_map"),
    (text_that_is_not_utf8, errors.TextError, "classes"),
    (nan_in_the_ledger, errors.TextError, "ledger"),
    (overflowing_number_in_the_ledger, errors.TextError, "ledger"),
    (ledger_change(sigma=-1.0), errors.LedgerError, "sigma"),
    (ledger_change(record_count=5), errors.LedgerError, "record_count"),
    (ledger_change(schema_version=2), errors.UnsupportedVersionError, "version"),
    (malformed_feature_map, FeatureMapError, "pooling"),
    (values_no_sum_can_have, errors.OutOfRangeError, "noisy_counts"),
    (row_that_inflates_too_far, errors.CorruptArtifactError, "noisy_sums: row 1"),
    (row_that_inflates_too_little, errors.CorruptArtifactError, "noisy_sums: row 1"),
    (row_with_bytes_after_its_end, errors.CorruptArtifactError, "noisy_sums: row 1"),
    (row_that_is_no_deflate_stream, errors.CorruptArtifactError, "noisy_sums: row 1"),
    (row_that_skips_a_filter, errors.CorruptArtifactError, "noisy_sums: row 1 skips a filter"),
]


@pytest.mark.parametrize(
    ("malform", "error", "named"), MALFORMATIONS, ids=[malform.__name__ for malform, _, _ in MALFORMATIONS]
)
def test_a_malformation_has_its_own_error_that_names_the_object(
    path: Path, malform: Callable[[h5py.File], None], error: type[DpmepfError], named: str
) -> None:
    read_artifact(path)
    with h5py.File(path, "r+", libver=VERSION) as file:
        malform(file)
    with pytest.raises(error, match=named) as caught:
        read_artifact(path)
    assert type(caught.value) is error
    assert str(caught.value).isprintable()


def test_a_foreign_hdf5_file_is_not_an_artifact(tmp_path: Path) -> None:
    for name, version in (("old.h5", "earliest"), ("new.h5", "v110")):
        with h5py.File(tmp_path / name, "w", libver=(version, "v110")) as file:
            file["weights"] = np.arange(10.0)
        with pytest.raises(errors.ArtifactError, match=r"not one written by dpmepf-embed|not a dpmepf artifact"):
            read_artifact(tmp_path / name)


def test_hidden_bytes_before_or_after_the_hdf5_content_are_refused(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content + b"secret")
    with pytest.raises(errors.TruncatedArtifactError, match="extended"):
        read_artifact(path)
    path.write_bytes(bytes(512) + content)
    with pytest.raises(errors.NotAnArtifactError):
        read_artifact(path)


def test_every_truncation_is_one_sentence(path: Path) -> None:
    content = path.read_bytes()
    for length in [*range(0, 60, 3), *range(60, len(content), len(content) // 80)]:
        path.write_bytes(content[:length])
        with pytest.raises((errors.TruncatedArtifactError, errors.NotAnArtifactError)) as caught:
            read_artifact(path)
        assert str(caught.value).isprintable()


FUZZER = """
    import random, resource, sys, time
    from pathlib import Path
    from dpmepf.artifacts.claims import check_claims
    from dpmepf.artifacts.hdf5_file import read_artifact
    from dpmepf.shared.errors import DpmepfError

    path = Path(sys.argv[1])
    content = path.read_bytes()
    chance = random.Random(7)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_CPU, (100, 100))
    refused = accepted = 0
    for _ in range(400):
        flipped = bytearray(content)
        for _ in range(chance.choice((1, 1, 1, 8))):
            flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        start = time.monotonic()
        try:
            check_claims(read_artifact(path))
            accepted += 1
        except DpmepfError as error:
            assert str(error).isprintable(), error
            refused += 1
        assert time.monotonic() - start < 5
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 * 1024, grown
    assert refused > 200, (refused, accepted)
    print("survived", refused, accepted)
"""


def test_random_bit_flips_end_in_a_typed_error_or_a_readable_file(path: Path) -> None:
    program = textwrap.dedent(FUZZER)
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("survived")
