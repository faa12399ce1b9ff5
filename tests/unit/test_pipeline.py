"""Images to sums: the same bits for any order and any number of workers, whatever the encoder returns is bounded."""

import copy
import dataclasses
import io
import math
import multiprocessing
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dpmepf.artifacts import hdf5_inspection
from dpmepf.artifacts.errors import CorruptArtifactError, OversizeError
from dpmepf.artifacts.ledger import ONE_IMAGE, ONE_PERSON
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.artifacts.sensitivity import count_weight_lattice, lattice_exponent
from dpmepf.embed import pipeline
from dpmepf.embed.checkpoint import Checkpoint, CheckpointError
from dpmepf.embed.fingerprint import run_fingerprint
from dpmepf.embed.pipeline import EmbeddingError, EmbedSettings, embed_images, plan, sum_images
from dpmepf.embed.summing import ClassSums, ExactSums
from dpmepf.shared import whitening
from dpmepf.shared.errors import UsageError
from dpmepf.shared.feature_map import FeatureMap, build_feature_map, describe_feature_map
from dpmepf.shared.image_sources import ImageSource, open_images
from dpmepf.shared.schema import ImageSchema, infer_schema

DIMENSION = 48
WEIGHT = count_weight_lattice(lattice_exponent(DIMENSION))


class StandInFeatures(nn.Module):
    """Pixels pooled to 4×4 as features; `spoil` may then do to them what a broken encoder would."""

    def __init__(self, spoil: Callable[[Tensor], Tensor] = lambda features: features) -> None:
        super().__init__()
        self.description = describe_feature_map(resolution=32, channels=3)
        self.dimension = DIMENSION
        self.non_negative = True
        self.spoil = spoil
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        features = nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(start_dim=1)
        return self.spoil(nn.functional.normalize(features, dim=1))


def settings(**changes: object) -> EmbedSettings:
    return EmbedSettings(**{"epsilon": 2.0, "delta": 1e-5, "batch_size": 8, "workers": 0} | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pixels() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (21, 32, 32, 3), np.uint8), generator.integers(0, 2, 21)


def open_npz(path: Path, images: np.ndarray, labels: np.ndarray) -> ImageSource:
    np.savez(path, x=images, y=labels)
    return open_images(path, classes=("a", "b"))


@pytest.fixture
def source(tmp_path: Path, pixels: tuple[np.ndarray, np.ndarray]) -> ImageSource:
    return open_npz(tmp_path / "data.npz", *pixels)


def summed(source: ImageSource, feature_map: nn.Module, **changes: object) -> ExactSums:
    schema = infer_schema(source)
    sums = sum_images(source, schema=schema, feature_map=feature_map, settings=settings(**changes))  # type: ignore[arg-type]
    return sums.take()


@pytest.fixture(scope="module")
def builtin() -> FeatureMap:
    return build_feature_map(describe_feature_map(resolution=32, channels=3))


def test_the_builtin_encoders_sums_are_bit_identical_for_any_order_and_any_workers(
    tmp_path: Path, pixels: tuple[np.ndarray, np.ndarray], builtin: FeatureMap
) -> None:
    images, labels = pixels
    expected = summed(open_npz(tmp_path / "0.npz", images, labels), builtin)
    for seed in (1, 2):
        order = np.random.default_rng(seed).permutation(len(labels))
        again = summed(open_npz(tmp_path / f"{seed}.npz", images[order], labels[order]), builtin)
        assert np.array_equal(again.features, expected.features)
    folder = tmp_path / "folder"
    for position, index in enumerate(np.random.default_rng(3).permutation(len(labels))):
        path = folder / "ab"[labels[index]] / f"{position:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index]).save(path)
    for workers in (0, 1, 2):
        again = summed(open_images(folder), builtin, workers=workers)
        assert np.array_equal(again.features, expected.features)
        assert np.array_equal(again.weighted_counts, expected.weighted_counts)


def test_decoding_processes_start_before_the_encoder_takes_memory_that_they_would_keep(tmp_path: Path) -> None:
    for index in range(20):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{index}.png")
    decoding: list[int] = []

    def count_processes(features: Tensor) -> Tensor:
        decoding.append(len(multiprocessing.active_children()))
        return features

    summed(open_images(tmp_path), StandInFeatures(spoil=count_processes), workers=2)
    assert decoding[0] == 2  # in the first pass of all, which checks the independence of random images


def test_decoding_processes_end_with_a_refused_encoder(tmp_path: Path) -> None:
    for index in range(20):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{index}.png")
    with pytest.raises(EmbeddingError) as refused:
        summed(open_images(tmp_path), StandInFeatures(spoil=lambda features: features - features.mean(0)), workers=2)
    assert not multiprocessing.active_children(), refused  # while the exception, and what it refers to, is there


def test_every_forward_pass_has_the_full_batch_size_and_padding_is_not_summed(source: ImageSource) -> None:
    feature_map = StandInFeatures(spoil=lambda features: torch.ones_like(features))
    sums = summed(source, feature_map)
    assert feature_map.batches == [*[8] * 5, *[8, 8, 8]]  # the first five are random images, to check independence
    assert sums.weighted_counts.sum() / WEIGHT == len(source) == 21


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_encoder_that_fails_on_every_image_adds_counts_but_no_features(source: ImageSource, value: float) -> None:
    sums = summed(source, StandInFeatures(spoil=lambda features: features * value))
    assert not sums.features.any()
    assert sums.weighted_counts.sum() / WEIGHT == 21


@pytest.mark.parametrize("factor", [1e30, -1e30, 3.0])
def test_an_encoder_that_returns_long_or_negative_features_is_bounded(source: ImageSource, factor: float) -> None:
    sums = summed(source, StandInFeatures(spoil=lambda features: features * factor))
    lengths = np.linalg.norm(sums.features / 2.0**26, axis=1)
    assert (lengths <= sums.weighted_counts / WEIGHT).all()
    assert sums.features.min() >= 0


def test_half_precision_features_are_taken(source: ImageSource) -> None:
    sums = summed(source, StandInFeatures(spoil=lambda features: features.to(torch.bfloat16)))
    assert sums.features.any()


def test_a_data_set_without_a_record_is_released_under_a_declared_schema(tmp_path: Path) -> None:
    source = open_npz(tmp_path / "empty.npz", np.zeros((0, 32, 32, 3), np.uint8), np.zeros(0, np.int64))
    schema = ImageSchema(classes=("a", "b"), resolution=32, channels=3, inferred=())
    artifact = embed_images(source, schema=schema, feature_map=StandInFeatures(), settings=settings())  # type: ignore[arg-type]
    assert artifact.noisy_sums.shape == (2, DIMENSION)


def test_the_plan_is_what_is_released_but_for_its_id(source: ImageSource) -> None:
    feature_map, schema = StandInFeatures(), infer_schema(source)
    chosen = settings(relation=NeighbouringRelation.REPLACE_ONE, dataset_name="noise")
    images: list[int] = []
    noise: list[int] = []
    artifact = embed_images(
        source,
        schema=schema,
        feature_map=feature_map,  # type: ignore[arg-type]
        settings=chosen,
        on_images=images.append,
        on_noise=noise.append,
    )
    planned = plan(schema, feature_map, chosen).to_dict() | {"release_id": artifact.ledger.release_id}  # type: ignore[arg-type]
    assert artifact.ledger.to_dict() == planned
    assert artifact.ledger.inferred_schema == ("resolution", "channels")
    assert images == [8, 8, 5]
    assert sum(noise) == artifact.ledger.coordinates


@pytest.mark.parametrize("changes", [{"epsilon": 1e-13, "delta": 1e-13}, {"epsilon": 1e7}])
def test_parameters_that_cannot_be_met_stop_before_an_image_is_read(
    source: ImageSource, changes: dict[str, float]
) -> None:
    feature_map = StandInFeatures()
    with pytest.raises(UsageError):
        embed_images(
            source,
            schema=infer_schema(source),
            feature_map=feature_map,  # type: ignore[arg-type]
            settings=settings(**changes),
        )
    assert not feature_map.batches


def test_running_out_of_memory_names_the_batch_size(source: ImageSource) -> None:
    def no_memory(features: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(EmbeddingError, match="smaller --batch-size"):
        summed(source, StandInFeatures(spoil=no_memory))


@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon": 0.0},
        {"epsilon": math.nan},
        {"epsilon": math.inf},
        {"delta": 0.0},
        {"delta": 1.0},
        {"batch_size": 0},
        {"workers": -1},
        {"dataset_name": ""},
        {"dataset_name": "two\nlines"},
    ],
)
def test_settings_out_of_range_are_usage_errors(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        settings(**changes)


def test_processes_tell_files_apart_whose_arrays_hold_other_pixels_in_the_same_places(
    tmp_path: Path, pixels: tuple[np.ndarray, np.ndarray]
) -> None:
    """Named by place, an image of one could be counted in both of two processes, and another in none."""
    images, _ = pixels
    same = np.zeros(len(images), np.int64)
    sources = [
        open_npz(tmp_path / f"{number}.npz", array, same) for number, array in enumerate((images, images, images[::-1]))
    ]
    schema = infer_schema(sources[0])
    one, copy, reversed_ = (
        run_fingerprint(source, schema, StandInFeatures().description, settings(), None)  # type: ignore[arg-type]
        for source in sources
    )
    assert one == copy != reversed_


# Rows do not depend on each other


@pytest.mark.parametrize(("batch_size", "threads"), [(256, 2), (50, 1)])
def test_changing_an_image_or_shifting_the_batches_leaves_the_other_images_features_bit_equal(
    builtin: FeatureMap, batch_size: int, threads: int
) -> None:
    chosen = settings(batch_size=batch_size)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        count = 2 * batch_size
        images = torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)

        def rows(of: Tensor, first: int = batch_size) -> Tensor:
            parts = [of[:first], *of[first:].split(batch_size)]
            return torch.cat([pipeline._features(builtin, part, chosen) for part in parts]).view(torch.int32)

        expected = rows(images)
        changed = images.clone()
        changed[7] = 255 - changed[7]
        others = torch.arange(count) != 7
        again = rows(changed)
        assert torch.equal(again[others], expected[others])
        assert not torch.equal(again[7], expected[7])
        for shift in (1, batch_size // 2):
            assert torch.equal(rows(images, first=shift), expected)
        assert torch.equal(rows(images[others]), expected[others])
    finally:
        torch.set_num_threads(before)


def place_in_the_batch(features: Tensor) -> Tensor:
    return features + torch.arange(len(features))[:, None] * 1e-6


def last_row_by_another_order(features: Tensor) -> Tensor:
    features[-1:] = nn.functional.normalize(features[-1:] * 0.3, dim=1)
    return features


def company(features: Tensor) -> Tensor:
    """As batch norm in training mode."""
    return features + 1e-3 * features.mean(dim=0)


def smallest_of_the_batch(features: Tensor) -> Tensor:
    """As a scale taken over the batch; another image seldom changes it."""
    return features - features.min()


def smallest_of_a_pair(features: Tensor) -> Tensor:
    smallest = features.amin(dim=1).view(-1, 2).amin(dim=1).repeat_interleave(2)
    return features - smallest[:, None]


def smallest_so_far(features: Tensor) -> Tensor:
    return features - features.amin(dim=1).cummin(dim=0).values[:, None]


class BatchBefore:
    """As an observer that keeps a range: nothing in a batch shows it but the batch before."""

    def __init__(self) -> None:
        self.seen = 1.0

    def __call__(self, features: Tensor) -> Tensor:
        scaled = features / self.seen
        self.seen = max(self.seen, 1 / max(float(features.amin()), 0.1))
        return scaled


def test_features_are_exact_float32_and_each_image_is_whitened_alone(
    source: ImageSource, builtin: FeatureMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU as well: cuDNN is used, and neither searches for algorithms nor rounds to TF32."""
    seen = set()

    def look(features: Tensor) -> Tensor:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        seen.add((cudnn.enabled, cudnn.deterministic, cudnn.benchmark, cudnn.conv.fp32_precision))
        seen.add((matmul.fp32_precision, whitening._alone.get()))
        return features

    summed(source, StandInFeatures(spoil=look))
    assert seen == {(True, True, False, "ieee"), ("ieee", True)}
    monkeypatch.setattr(whitening, "product_of_all", None)  # of the whole batch
    summed(source, builtin)


@pytest.mark.parametrize(
    "spoil",
    [
        place_in_the_batch,
        last_row_by_another_order,
        company,
        smallest_of_the_batch,
        smallest_of_a_pair,
        smallest_so_far,
        BatchBefore(),
    ],
)
def test_an_encoder_whose_features_depend_on_place_or_company_is_refused_before_an_image_is_read(
    source: ImageSource, spoil: Callable[[Tensor], Tensor]
) -> None:
    feature_map = StandInFeatures(spoil)
    with pytest.raises(EmbeddingError, match="another place of the batch"):
        summed(source, feature_map)
    assert set(feature_map.batches) == {8} and len(feature_map.batches) <= 5


def test_an_image_that_is_alone_in_its_batch_has_no_company(source: ImageSource) -> None:
    expected = summed(source, StandInFeatures())
    assert np.array_equal(summed(source, StandInFeatures(company), batch_size=1).features > 0, expected.features > 0)


# A run that is interrupted


class StoppedError(Exception):
    """Stands for whatever ends a run while it reads images."""


def interrupted(source: ImageSource, file: Path, after: int, **arguments: Any) -> None:
    """Run until `after` images are embedded, with sums kept after every batch."""
    seen = [0]

    def stop(count: int) -> None:
        seen[0] += count
        if seen[0] >= after:
            raise StoppedError

    with pytest.raises(StoppedError):
        kept_sums(source, file, on_images=stop, **arguments)


def kept_sums(source: ImageSource, file: Path, *, persons: np.ndarray | None = None, **arguments: Any) -> ClassSums:
    on_images, on_unreadable = arguments.pop("on_images", None), arguments.pop("on_unreadable", None)
    feature_map = arguments.pop("feature_map", None) or StandInFeatures()
    unit = ONE_IMAGE if persons is None else ONE_PERSON
    return sum_images(
        source,
        schema=infer_schema(source),
        feature_map=feature_map,
        settings=settings(unit_of_privacy=unit, **arguments),
        persons=persons,
        checkpoint=Checkpoint(path=file, interval_seconds=0.0, largest_share=math.inf),
        on_images=on_images,
        on_unreadable=on_unreadable,
    )


PERSONS = {
    "by image": None,
    "by person": np.repeat(np.arange(7), 3),
    "persons all over": np.arange(21) % 4,
    "one person": np.zeros(21, np.int64),
}


@pytest.mark.parametrize("persons", PERSONS.values(), ids=PERSONS)
@pytest.mark.parametrize("ends", [(1,), (9,), (21,), (1, 9), (9, 9, 9)])
def test_a_run_that_goes_on_sums_every_image_once(
    tmp_path: Path, source: ImageSource, persons: np.ndarray | None, ends: tuple[int, ...]
) -> None:
    file = tmp_path / "kept"
    for end in ends:
        interrupted(source, file, end, persons=persons)
    embedded: list[int] = []
    gone_on = kept_sums(source, file, persons=persons, on_images=embedded.append).take()
    whole = kept_sums(source, tmp_path / "other", persons=persons).take()
    assert np.array_equal(gone_on.features, whole.features)
    assert np.array_equal(gone_on.weighted_counts, whole.weighted_counts)
    assert sum(embedded) == 21


def test_a_run_goes_on_where_it_was_and_not_at_the_beginning(tmp_path: Path, source: ImageSource) -> None:
    interrupted(source, tmp_path / "kept", 16)
    embedded: list[int] = []
    kept_sums(source, tmp_path / "kept", on_images=embedded.append)
    assert embedded == [16, 5]


def test_a_run_goes_on_with_the_same_features_only(tmp_path: Path, source: ImageSource) -> None:
    """As by a machine whose kernels round otherwise: images before and after would be measured differently."""
    interrupted(source, tmp_path / "kept", 16)
    with pytest.raises(CheckpointError, match="computes otherwise"):
        kept_sums(source, tmp_path / "kept", feature_map=StandInFeatures(lambda features: features * (1 + 2**-22)))
    assert kept_sums(source, tmp_path / "kept").take() is not None


def swap(data: Path) -> None:
    """A summed image comes again at a place that is not done."""
    (data / "00.png").rename(data / "x")
    (data / "20.png").rename(data / "00.png")
    (data / "x").rename(data / "20.png")


def rewrite(data: Path) -> None:
    content, found = (data / "03.png").read_bytes(), (data / "03.png").stat()
    (data / "03.png").write_bytes(content)
    os.utime(data / "03.png", ns=(found.st_atime_ns, found.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "an image changes its name": lambda data: (data / "20.png").rename(data / "00b.png"),
    "two images change places": swap,
    "an image is missing": lambda data: (data / "03.png").unlink(),
    "an image is written anew": rewrite,
    "another folder of the same names": lambda data: (
        data.rename(data.with_name("x")),
        shutil.copytree(data.with_name("x"), data),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_run_goes_on_with_the_same_images_only(
    tmp_path: Path, pixels: tuple[np.ndarray, np.ndarray], change: Callable[[Path], object]
) -> None:
    """Otherwise an image that was summed could come again at another place."""
    data = tmp_path / "data"
    data.mkdir()
    for number, image in enumerate(pixels[0]):
        Image.fromarray(image).save(data / f"{number:02}.png")
    interrupted(open_images(data), tmp_path / "kept", 16)
    with pytest.raises(CheckpointError, match="another run"):
        kept_sums(open_images(data), tmp_path / "kept", epsilon=1.0)
    change(data)
    with pytest.raises(CheckpointError, match="another run"):
        kept_sums(open_images(data), tmp_path / "kept")


OTHERWISE: dict[str, dict[str, Any]] = {
    "epsilon": {"settings": {"epsilon": 3.0}},
    "delta": {"settings": {"delta": 1e-7}},
    "relation": {"settings": {"relation": NeighbouringRelation.REPLACE_ONE}},
    "unit of privacy": {"settings": {"unit_of_privacy": ONE_PERSON}},
    "batches": {"settings": {"batch_size": 9}},
    "name of the data": {"settings": {"dataset_name": "other"}},
    "persons": {"persons": np.r_[np.arange(20), 0]},
    "labels": {"labels": np.zeros(21, np.int64)},
    "resolution": {"schema": {"resolution": 64}},
    "feature map": {"feature_map": "another"},
}


@pytest.mark.parametrize("changes", OTHERWISE.values(), ids=OTHERWISE)
def test_a_run_is_told_from_others_by_everything_that_sums_depend_on(
    changes: dict[str, Any], source: ImageSource
) -> None:
    """Else sums of one would go on with images of another: a person who is split otherwise would count twice."""

    def fingerprint(**changes: Any) -> bytes:
        persons = changes.get("persons", np.arange(21))
        with_labels = copy.copy(source)
        with_labels.labels = changes.get("labels", source.labels)
        schema = dataclasses.replace(infer_schema(source), **changes.get("schema", {}))
        feature_map = changes.get("feature_map", StandInFeatures().description)
        return run_fingerprint(with_labels, schema, feature_map, settings(**changes.get("settings", {})), persons)

    assert fingerprint() == fingerprint() != fingerprint(**changes)


def test_more_numbers_than_an_artifact_holds_are_refused_before_an_image_is_read(
    source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema, feature_map = infer_schema(source), StandInFeatures()
    monkeypatch.setattr("dpmepf.artifacts.artifact.LARGEST_SIZE", len(schema.classes) * feature_map.dimension - 1)
    with pytest.raises(OversizeError, match="above the limit"):
        plan(schema, feature_map, settings())  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["zip", "tar", "parquet"])
def test_an_archive_that_was_packed_anew_is_another_run(
    tmp_path: Path, form: str, pixels: tuple[np.ndarray, np.ndarray]
) -> None:
    images = [(f"{number:02}.png", image) for number, image in enumerate(pixels[0])]
    file = tmp_path / f"data.{form}"
    pack(file, images)
    interrupted(open_images(file), tmp_path / "kept", 16)
    kept_sums(open_images(file), tmp_path / "kept")
    interrupted(open_images(file), tmp_path / "kept2", 16)
    file.unlink()
    pack(file, [(name, image) for (name, _), (_, image) in zip(images, images[::-1], strict=True)])
    with pytest.raises(CheckpointError, match="another run"):
        kept_sums(open_images(file), tmp_path / "kept2")


def test_an_archive_that_is_replaced_while_it_is_open_is_another_run(
    tmp_path: Path, pixels: tuple[np.ndarray, np.ndarray]
) -> None:
    """A zip file that stays open is read as it was, while the file system tells of the one that took its name."""
    images = [(f"{number:02}.png", image) for number, image in enumerate(pixels[0])]
    file = tmp_path / "data.zip"
    pack(file, images)
    source = open_images(file)
    infer_schema(source)
    pack(tmp_path / "new.zip", [(name, image) for (name, _), (_, image) in zip(images, images[::-1], strict=True)])
    (tmp_path / "new.zip").replace(file)
    interrupted(source, tmp_path / "kept", 16)
    with pytest.raises(CheckpointError, match="another run"):
        kept_sums(open_images(file), tmp_path / "kept")


def test_a_tar_whose_images_lie_elsewhere_is_another_run(tmp_path: Path, pixels: tuple[np.ndarray, np.ndarray]) -> None:
    """Opened with one image more, hidden from the list, in front: places in it are those of other images afterwards."""
    images = [(f"{number:02}.png", image) for number, image in enumerate(pixels[0])]
    file = tmp_path / "data.tar"
    pack(file, [(".x.png", pixels[0][0]), *images])
    source = open_images(file)
    infer_schema(source)
    pack(tmp_path / "new.tar", [*images, (".x.png", pixels[0][0])])
    (tmp_path / "new.tar").replace(file)
    interrupted(source, tmp_path / "kept", 16)
    with pytest.raises(CheckpointError, match="another run"):
        kept_sums(open_images(file), tmp_path / "kept")


def test_a_run_that_failed_lets_the_next_have_its_sums(tmp_path: Path, source: ImageSource) -> None:
    """Also while its error is still looked at, as in a notebook."""
    with pytest.raises(StoppedError) as failure:
        embed_images(
            source,
            schema=infer_schema(source),
            feature_map=StandInFeatures(),  # type: ignore[arg-type]
            settings=settings(),
            checkpoint=Checkpoint(path=tmp_path / "kept"),
            on_images=stop_at_once,
        )
    kept_sums(source, tmp_path / "kept")
    assert failure.traceback


def stop_at_once(_: int) -> None:
    raise StoppedError


def test_sums_without_an_image_that_cannot_be_decoded_are_gone_on_from_only_by_a_run_that_skips(
    tmp_path: Path, pixels: tuple[np.ndarray, np.ndarray]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number, image in enumerate(pixels[0]):
        Image.fromarray(image).save(data / f"{number:02}.png")
    (data / "03.png").write_bytes(b"no image")
    interrupted(open_images(data), tmp_path / "kept", 9, skip_unreadable=True)
    with pytest.raises(CheckpointError, match="--skip-unreadable"):
        kept_sums(open_images(data), tmp_path / "kept")
    kept_sums(open_images(data), tmp_path / "kept", skip_unreadable=True)


def pack(file: Path, images: list[tuple[str, np.ndarray]]) -> None:
    encoded = {}
    for name, image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG", compress_level=0)  # all of one size
        encoded[name] = stream.getvalue()
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in encoded.items():
                archive.writestr(zipfile.ZipInfo(name), content)
    elif file.suffix == ".tar":
        with tarfile.open(file, "w") as tar:
            for name, content in encoded.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    else:
        table = pyarrow.table({"image": [{"bytes": content, "path": None} for content in encoded.values()]})
        pyarrow.parquet.write_table(table, file)


def test_names_that_no_artifact_holds_are_refused_before_any_image_is_read(
    source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hdf5_inspection.LARGEST_TEXTS, "classes", 9)
    feature_map = StandInFeatures()
    with pytest.raises(OversizeError, match="classes: 10 bytes"):
        embed_images(source, schema=infer_schema(source), feature_map=feature_map, settings=settings())
    assert not feature_map.batches


def test_a_library_that_could_not_read_the_artifact_is_found_before_any_image_is_read(
    source: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: h5py.File) -> None:
        raise CorruptArtifactError("written otherwise than it is read")

    monkeypatch.setattr(hdf5_inspection, "check_storage", refuse)
    feature_map = StandInFeatures()
    with pytest.raises(CorruptArtifactError, match="otherwise"):
        embed_images(source, schema=infer_schema(source), feature_map=feature_map, settings=settings())
    assert not feature_map.batches
