"""Ways to fill a well-built artifact wrongly: its texts, its numbers and its compressed rows."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
from artifact_examples import as_ledger_text
from malformed_structure import DIMENSION, Malformation, put_classes, put_sums, text_type

from dpmepf.artifacts import errors
from dpmepf.artifacts.ledger import installed_versions
from dpmepf.shared.feature_map_description import FeatureMapError

LARGEST_CLASSES = 2**25
OTHER_RELEASE = "0" * 8 + "-0000" * 3 + "-" + "0" * 12


def put_text(file: h5py.File, name: str, text: str | bytes) -> None:
    content = text.encode() if isinstance(text, str) else text
    del file[name]
    file.create_dataset(name, data=np.array(content, dtype=text_type(len(content))))


def as_written(name: str, fields: Any) -> str:
    """`fields` in the spelling of the text `name`."""
    return as_ledger_text(fields) if name == "ledger" else json.dumps(fields, sort_keys=True)


def texts(name: str, text: str | bytes, called: str) -> Callable[[h5py.File], None]:
    """The malformation `called` so, whose text `name` is `text`."""

    def malform(file: h5py.File) -> None:
        put_text(file, name, text)

    malform.__name__ = called
    return malform


def fields(name: str, called: str, **changes: Any) -> Callable[[h5py.File], None]:
    """The malformation `called` so, with other fields in the JSON object `name`."""

    def malform(file: h5py.File) -> None:
        put_text(file, name, as_written(name, json.loads(file[name][()]) | changes))

    malform.__name__ = called
    return malform


def ledger(called: str, **changes: Any) -> Callable[[h5py.File], None]:
    return fields("ledger", called, **changes)


def feature_map(called: str, **changes: Any) -> Callable[[h5py.File], None]:
    return fields("feature_map", called, **changes)


def merged_ledger(called: str, *, indent: int | None = 1, **changes: Any) -> Callable[[h5py.File], None]:
    """The malformation `called` so: the file's ledger twice in a merged one, with other fields."""

    def malform(file: h5py.File) -> None:
        entry = json.loads(file["ledger"][()])
        merged = {"schema_version": 2, "noise_sigma": 1.0, "releases": [entry, entry | {"release_id": OTHER_RELEASE}]}
        put_text(file, "ledger", json.dumps(merged | changes, indent=indent, ensure_ascii=False))

    malform.__name__ = called
    return malform


def respelled(name: str, called: str, old: str, new: str) -> Callable[[h5py.File], None]:
    """The malformation `called` so: the text `name` says the same in other letters."""

    def malform(file: h5py.File) -> None:
        text = file[name][()].decode()
        changed = text.replace(old, new, 1)
        assert changed != text and json.loads(changed) == json.loads(text)
        put_text(file, name, changed)

    malform.__name__ = called
    return malform


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def repeated_key_in_the_ledger(file: h5py.File) -> None:
    put_text(file, "ledger", file["ledger"][()].replace(b'"delta": 1e-05', b'"delta": 1e-05, "delta": 1e-06', 1))


def overflowing_number_in_the_ledger(file: h5py.File) -> None:
    put_text(file, "ledger", file["ledger"][()].replace(b'"delta": 1e-05', b'"delta": 1e999', 1))


def deep_ledger_field(file: h5py.File) -> None:
    """So deep that the parser just takes it."""
    text = file["ledger"][()].replace(b'"discrete-gaussian"', b"[" * 900 + b"]" * 900)
    put_text(file, "ledger", text)


def oversized_classes(file: h5py.File) -> None:
    put_classes(file, shape=(), dtype=text_type(2**26))


def other_padding(file: h5py.File) -> None:
    """Text that ends where a null is, and more behind it."""
    put_text(file, "classes", b'["a", "b", "c"]\x00["hidden"]')


def nulls_after_the_text(file: h5py.File) -> None:
    """As a file's library pads a text; more of them could be hidden in the length alone."""
    text = file["classes"][()]
    put_classes(file, data=np.array(text, dtype=text_type(len(text) + 40)))


def keys_in_another_order(file: h5py.File) -> None:
    entry = json.loads(file["ledger"][()])
    put_text(file, "ledger", as_ledger_text({"delta": entry["delta"]} | {"mechanism": 0} | entry))


def ledger_in_one_line(file: h5py.File) -> None:
    put_text(file, "ledger", json.dumps(json.loads(file["ledger"][()])))


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


def row_a_little_larger_than_can_be(file: h5py.File) -> None:
    sums = put_sums(file)
    for row, length in enumerate((10 * DIMENSION, 4 * DIMENSION, 4 * DIMENSION)):
        sums.id.write_direct_chunk((row, 0), random.Random(row).randbytes(length))


CONTENT: list[Malformation] = [
    (texts("ledger", "{" + " " * 2**20 + "}", "oversized_ledger"), errors.OversizeError, "ledger: 1048578 bytes"),
    (texts("feature_map", " " * 2**20, "oversized_feature_map"), errors.OversizeError, "feature_map: 1048576 bytes"),
    (oversized_classes, errors.OversizeError, "classes: 67108864 bytes"),
    (ledger("oversized_dataset_name", dataset_name="x" * 30_000), errors.LedgerError, "dataset_name is 'xxx"),
    (ledger("oversized_number", sensitivity_squared="9" * 30_000), errors.LedgerError, "sensitivity_squared is '999"),
    (texts("ledger", "9" * 30_000, "number_as_ledger"), errors.TextError, "ledger: not valid JSON.*limit"),
    (texts("classes", json.dumps(["a", "b", "c" * 201]), "oversized_class"), errors.ClassNamesError, "200 bytes"),
    (texts("classes", '["a", "b", "a"]', "duplicate_class"), errors.ClassNamesError, "appears twice"),
    (texts("classes", '["a", "b", "../.ssh/config"]', "path_as_class"), errors.ClassNamesError, "ssh"),
    (texts("classes", r'["a", "b", "\u001b]0;owned\u0007"]', "control_in_a_class"), errors.ClassNamesError, "owned"),
    (texts("classes", r'["a", "b", "\ud800"]', "surrogate_in_a_class"), errors.TextError, "classes: its JSON has"),
    (texts("classes", "[]", "no_class"), errors.TextError, "classes: expected a JSON list"),
    (texts("classes", '["a", "b"]', "a_class_too_few"), errors.ShapeError, "noisy_sums: 3 rows for 2 classes"),
    (texts("classes", "[1, 2, 3]", "numbers_as_classes"), errors.TextError, "classes: expected a JSON list of names"),
    (texts("classes", "{}", "object_as_classes"), errors.TextError, "classes: expected a JSON list of names"),
    (texts("classes", b'["a", "b", "\xff"]', "text_that_is_not_utf8"), errors.TextError, "classes.*UTF-8"),
    (other_padding, errors.TextError, "classes: expected a JSON list"),
    # Millions of little objects in a text of the largest size that is read.
    (
        texts("classes", "[" + "{}," * (LARGEST_CLASSES // 3 - 2) + "{}]", "millions_of_objects"),
        errors.TextError,
        "expected a JSON list of names",
    ),
    (
        texts("classes", "[" + "[]," * (LARGEST_CLASSES // 3 - 2) + "[]]", "millions_of_lists"),
        errors.TextError,
        "expected a JSON list of names",
    ),
    (
        texts("classes", "[" + '"a",' * (LARGEST_CLASSES // 4 - 2) + '"a"]', "millions_of_classes"),
        errors.TextError,
        "expected a JSON list of names",
    ),
    (texts("classes", json.dumps(["a"] * 400_000), "too_many_classes"), errors.TextError, "more than 100000 names"),
    (
        texts("classes", "[" + ", ".join(["[" * 40 + "]" * 40] * 399_000) + "]", "lists_in_lists"),
        errors.TextError,
        "expected a JSON list of names",
    ),
    (texts("classes", json.dumps(["é" * 2**24]), "class_of_megabytes"), errors.OversizeError, "classes"),
    (texts("classes", json.dumps(["x" * (2**25 - 10)]), "class_of_32_mebibytes"), errors.ClassNamesError, "'xxx"),
    (texts("feature_map", "[" * 60_000, "nested_without_end"), errors.TextError, "feature_map.*nested too deeply"),
    (texts("ledger", '{"a":' * 8_000, "nested_ledger"), errors.TextError, "ledger.*nested too deeply"),
    (deep_ledger_field, errors.LedgerError, "mechanism"),
    (ledger("deep_library_versions", library_versions=nested(100)), errors.LedgerError, "library_versions"),
    (feature_map("deep_feature_map_field", layers=nested(100)), FeatureMapError, "layers"),
    (ledger("nan_sigma", sigma=float("nan")), errors.TextError, "ledger: the number NaN"),
    (ledger("infinite_epsilon", epsilon=float("inf")), errors.TextError, "ledger: the number Infinity"),
    (feature_map("nan_weight", layer_weights=[float("nan")]), errors.TextError, "feature_map: the number NaN"),
    (overflowing_number_in_the_ledger, errors.LedgerError, "delta is inf"),
    (repeated_key_in_the_ledger, errors.TextError, "ledger: the key 'delta' appears twice"),
    (texts("ledger", "[]", "ledger_that_is_a_list"), errors.LedgerError, "ledger: expected a JSON object"),
    (ledger("negative_sigma", sigma=-1.0), errors.LedgerError, "sigma is -1.0"),
    (ledger("no_noise", sigma=0.0), errors.LedgerError, r"sigma is 0\.0"),
    (ledger("sigma_as_text", sigma="1e9"), errors.LedgerError, "sigma is '1e9'"),
    (ledger("sigma_as_list", sigma=[1e9]), errors.LedgerError, r"sigma is \[1000000000\.0\]"),
    (ledger("unknown_relation", relation="replace-none"), errors.LedgerError, "relation is 'replace-none'"),
    (ledger("undeclared_field", record_count=5), errors.LedgerError, "'record_count' is not known"),
    (ledger("other_mechanism", mechanism="laplace"), errors.LedgerError, "mechanism is 'laplace'"),
    (ledger("later_version", schema_version=2), errors.UnsupportedVersionError, "version is 2"),
    (ledger("earlier_version", schema_version=0), errors.UnsupportedVersionError, "version is 0"),
    (ledger("version_that_is_no_number", schema_version=True), errors.UnsupportedVersionError, "version is True"),
    (merged_ledger("noise_of_no_sum"), errors.InconsistentArtifactError, "merged noise"),
    (merged_ledger("number_as_releases", releases=2), errors.LedgerError, "releases is 2; allowed is a list"),
    (merged_ledger("object_as_releases", releases={"1": {}}), errors.LedgerError, "releases is {'1': {}}; allowed"),
    (
        merged_ledger("numbers_as_ledgers", releases=[1, 2]),
        errors.LedgerError,
        "release 1: ledger: expected a JSON",
    ),
    (
        merged_ledger("thousands_of_releases", releases=[{}] * 15_000, indent=None),
        errors.LedgerError,
        r"15000 release\(s\) merged",
    ),
    (merged_ledger("deep_releases", indent=None, releases=nested(900)), errors.LedgerError, r"1 release\(s\) merged"),
    (merged_ledger("deep_noise", indent=None, noise_sigma=nested(900)), errors.LedgerError, "noise_sigma is"),
    (merged_ledger("noise_as_text", noise_sigma="1.0"), errors.LedgerError, "noise_sigma is '1.0'"),
    (merged_ledger("nan_noise", noise_sigma=float("nan")), errors.TextError, "ledger: the number NaN"),
    (merged_ledger("undeclared_merged_field", parts=2), errors.LedgerError, "'parts' of a merged ledger is not known"),
    (merged_ledger("later_merged_version", schema_version=3), errors.UnsupportedVersionError, "version is 3"),
    (feature_map("negative_pooling", pooling=-4), FeatureMapError, r"pooling is '\(-4, -4\)'"),
    (feature_map("pooling_of_too_few_layers", pooling=[4]), FeatureMapError, r"pooling is '\(4,\)'; allowed is one"),
    (feature_map("weight_that_no_float_holds", layer_weights=[10**400, 1]), FeatureMapError, "layer_weights"),
    (feature_map("mean_that_no_float_holds", pixel_mean=[10**400, 0, 0]), FeatureMapError, "pixel_mean"),
    (feature_map("encoder_that_is_a_path", encoder="../../evil.pt"), FeatureMapError, "encoder is '../../evil.pt'"),
    (feature_map("undeclared_feature_map_field", url="http://x"), FeatureMapError, "exactly the fields"),
    (respelled("ledger", "spaces_in_the_ledger", ": ", ": \t  \t"), errors.TextError, "ledger: its JSON has spaces"),
    (respelled("ledger", "number_with_more_digits", "1e-05", "0.000010"), errors.TextError, "ledger: its JSON"),
    (respelled("ledger", "letter_as_its_number", "epsilon", "\\u0065psilon"), errors.TextError, "ledger: its JSON"),
    (
        respelled("feature_map", "spaces_after_the_feature_map", "}", "}\n \n"),
        errors.TextError,
        "feature_map: its JSON",
    ),
    (respelled("classes", "space_between_classes", ", ", " , "), errors.TextError, "classes: expected a JSON list"),
    (nulls_after_the_text, errors.TextError, "classes: nulls follow"),
    (keys_in_another_order, errors.TextError, "ledger: its JSON"),
    (ledger_in_one_line, errors.TextError, "ledger: its JSON"),
    (feature_map("whole_numbers_as_shares", pixel_mean=[0, 1, 0]), errors.TextError, "feature_map: its JSON"),
    (
        respelled("feature_map", "digits_that_a_reader_rounds", "0.5,", "0.50000000000000000001,"),
        errors.TextError,
        "feature_map: its JSON",
    ),
    (feature_map("layers_beyond_ascii", layers=["stage1", "\u4e00" * 20]), FeatureMapError, "layers is"),
    (feature_map("layer_of_a_long_name", layers=["stage1", "x" * 65]), FeatureMapError, "layers is"),
    (
        ledger("library_that_is_none_of_ours", library_versions={**installed_versions(), "notes": "1.0"}),
        errors.LedgerError,
        "library_versions",
    ),
    (
        ledger("version_that_is_a_message", library_versions={**installed_versions(), "torch": "of Ann"}),
        errors.LedgerError,
        "library_versions",
    ),
    (
        ledger("versions_in_another_order", library_versions=dict(reversed(installed_versions().items()))),
        errors.TextError,
        "ledger: its JSON",
    ),
    (ledger("schema_in_another_order", inferred_schema=["channels", "classes"]), errors.LedgerError, "inferred_schema"),
    (values_no_sum_can_have, errors.OutOfRangeError, "noisy_counts: a value lies outside"),
    (row_far_larger_than_declared, errors.CompressionBombError, "noisy_sums: 1048.* stored for 1536 declared"),
    (row_a_little_larger_than_can_be, errors.CompressionBombError, "noisy_sums: row 0"),
    (row_that_inflates_too_far, errors.CorruptArtifactError, "noisy_sums: row 1 does not inflate to 64"),
    (row_that_inflates_too_little, errors.CorruptArtifactError, "noisy_sums: row 1 does not inflate to 64"),
    (row_with_bytes_after_its_end, errors.CorruptArtifactError, "noisy_sums: row 1 does not inflate to 64"),
    (row_that_is_no_deflate_stream, errors.CorruptArtifactError, "noisy_sums: row 1 is damaged"),
    (row_that_skips_a_filter, errors.CorruptArtifactError, "noisy_sums: row 1 skips a filter"),
]
