"""The baselines of the quality table: DP-MERF is charged at its sensitivity, DP-SGD spends no more than its ε."""

from __future__ import annotations

import warnings
from pathlib import Path

import dp_sgd
import numpy as np
import pytest
import torch
from dp_merf import RandomFourierFeatures, squared_bandwidth, write_dp_merf_set
from dp_sgd import Recipe, noise_multiplier_for, train_private_classifier, with_group_norm
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.validators import ModuleValidator
from synthesis_quality import arguments_of, native_bfloat16, planned
from synthesis_stand_ins import small_settings, squares

from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.artifacts.sensitivity import count_weight_lattice, lattice_exponent, record_norm_squared
from dpmepf.shared.image_source_types import ImageSource
from dpmepf.shared.image_sources import open_images
from dpmepf.synthesize import training
from dpmepf.synthesize.classifiers import SmallCnn

CLASSES, EACH, DIMENSION = 3, 20, 64


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    path = tmp_path_factory.mktemp("data") / "squares.npz"
    images = (squares(CLASSES, EACH) * 255).to(torch.uint8).permute(0, 2, 3, 1)
    np.savez(path, x=images.numpy(), y=np.repeat(np.arange(CLASSES), EACH), classes=np.array(["a", "b", "c"]))
    return open_images(path, public=True)


def test_random_fourier_features_have_norm_1_and_the_gaussian_kernel_as_inner_product() -> None:
    features = RandomFourierFeatures(resolution=28, channels=1, seed=0, dimension=20_000)
    images = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    vectors = features(images)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    distances = torch.cdist(images.flatten(1), images.flatten(1)).square()
    kernel = torch.exp(-distances / (2 * squared_bandwidth(784)))
    # A mean of 10,000 cosines deviates by 0.01 at most in mean square: five times that, for 20 numbers.
    torch.testing.assert_close(vectors @ vectors.T, kernel, atol=0.05, rtol=0)
    assert squared_bandwidth(784) == pytest.approx(105)


def test_bytes_and_floats_of_an_image_have_the_same_features() -> None:
    features = RandomFourierFeatures(resolution=28, channels=1, seed=0, dimension=DIMENSION)
    images = torch.randint(256, (4, 1, 28, 28), dtype=torch.uint8)
    torch.testing.assert_close(features(images), features(images.float() / 255))


@pytest.mark.parametrize(("relation", "records"), [("add-or-remove-one", 1), ("replace-one", 4)])
def test_dp_merf_is_charged_twice_the_norm_of_a_record_where_one_is_replaced(
    relation: str, records: int, source: ImageSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its features have both signs: 2Λ, not √2Λ."""
    monkeypatch.setattr(training, "RECALIBRATION_IMAGES", 20)
    path, release = write_dp_merf_set(
        source,
        tmp_path,
        small_settings(steps=2),
        epsilon=50.0,
        delta=1e-5,
        relation=NeighbouringRelation(relation),
        dimension=DIMENSION,
    )
    exponent = lattice_exponent(DIMENSION)
    expected = records * record_norm_squared(exponent, count_weight_lattice(exponent))
    assert release.ledger.sensitivity_squared == expected
    assert release.ledger.relation == relation
    made = open_images(path, public=True)
    assert made.classes == ("a", "b", "c")
    assert abs(len(made) - CLASSES * EACH) < 30
    assert (tmp_path / "preview.png").is_file()


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 10.0])
def test_the_noise_multiplier_meets_epsilon_by_opacus_own_accountants(epsilon: float) -> None:
    rate, steps = 1 / 59, 590
    multiplier = noise_multiplier_for(epsilon, 1e-5, sample_rate=rate, steps=steps)
    prv, rdp = PRVAccountant(), RDPAccountant()
    prv.history = rdp.history = [(multiplier, rate, steps)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimal order is the")
        spent, looser = prv.get_epsilon(1e-5, eps_error=0.01 * epsilon), rdp.get_epsilon(1e-5)
    assert 0.98 * epsilon < spent <= epsilon
    assert spent < looser < 1.3 * epsilon  # another proof for the same mechanism


def test_a_private_classifier_spends_at_most_epsilon_and_takes_bytes() -> None:
    images = (squares(CLASSES, 30) * 255).to(torch.uint8)
    labels = torch.arange(CLASSES).repeat_interleave(30)
    trained = train_private_classifier(
        images, labels, Recipe(passes=2, batch_size=45), class_count=CLASSES, epsilon=1.0, delta=1e-5, seed=0
    )
    assert 0.9 < trained.epsilon <= 1.0
    assert (trained.steps, trained.sample_rate) == (4, 0.5)
    scores = trained.network(images)
    assert scores.shape == (90, CLASSES)
    torch.testing.assert_close(trained.network(images[:1]), scores[:1])  # no image's score depends on others


def test_no_batch_norm_is_left_through_which_images_influence_each_other() -> None:
    network = with_group_norm(SmallCnn(channels=3, resolution=32, class_count=CLASSES), groups=2)
    kinds = [type(module) for module in network.modules()]
    assert kinds.count(torch.nn.GroupNorm) >= 5
    assert not any(issubclass(kind, torch.nn.modules.batchnorm._BatchNorm) for kind in kinds)
    assert ModuleValidator.validate(network) == []


def test_a_private_classifier_learns_where_noise_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp_sgd, "ACCOUNTANT", "rdp")  # the numbers of the other one overflow at so large an epsilon
    images = (squares(CLASSES, 40) * 255).to(torch.uint8)
    labels = torch.arange(CLASSES).repeat_interleave(40)
    recipe = Recipe(passes=12, batch_size=60, average_decay=0.5)
    trained = train_private_classifier(images, labels, recipe, class_count=CLASSES, epsilon=1e5, delta=1e-2, seed=0)
    assert float((trained.network(images).argmax(dim=1) == labels).float().mean()) > 0.9


def test_the_command_lines_that_were_there_before_still_parse(tmp_path: Path) -> None:
    options = arguments_of(["--data", str(tmp_path), "--eps", "1", "0.2"])
    assert (options.methods, options.eps, options.runs, options.log) == (["ours"], [1.0, 0.2], 3, None)


def test_what_a_run_is_of_tells_method_settings_and_code(tmp_path: Path) -> None:
    options = arguments_of(["--data", str(tmp_path), "--methods", "ours,dp-merf,dp-sgd", "--steps", "5"])
    plans = [planned(method, 1.0, 0, options) for method in options.methods]
    assert [plan["settings"].get("steps") for plan in plans] == [5, 5, None]
    assert plans[2]["settings"]["passes"] == 10
    assert all(plan["version"] for plan in plans)
    (tmp_path / "birds").mkdir()
    options = arguments_of(["--data", str(tmp_path), "--prior", str(tmp_path / "birds"), "--public", "fish.zip"])
    assert planned("ours", 1.0, 0, options)["settings"] == plans[0]["settings"] | {
        "steps": 2160 if native_bfloat16() else 720,
        "prior": "birds",
        "public": ["fish.zip"],
    }


def test_dp_sgd_is_refused_under_a_relation_that_its_accountant_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        arguments_of(["--data", str(tmp_path), "--methods", "dp-sgd", "--relation", "replace-one"])
    assert "added or removed" in capsys.readouterr().err
