"""`dpmepf-embed`: what it writes, what it shows, and that nothing private is shown."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from PIL import Image

from dpmepf.artifacts.accounts import Budget
from dpmepf.artifacts.audit import audit_artifact
from dpmepf.artifacts.errors import ArtifactWriteError
from dpmepf.artifacts.hdf5_file import read_artifact
from dpmepf.artifacts.ledger import ONE_IMAGE
from dpmepf.artifacts.register import Register, default_register
from dpmepf.artifacts.relation import NeighbouringRelation
from dpmepf.artifacts.signature import signature_file, verify_file
from dpmepf.embed import command, pipeline, request
from dpmepf.embed import release as release_module
from dpmepf.embed import run as run_module
from dpmepf.embed.noise import NoiseError
from dpmepf.embed.summing import ClassSums, ExactSums
from dpmepf.shared import image_loading, schema

SECRET = "patient-4711"
IMAGES = 29  # a number that nothing public has
PERSONS = 5  # in `folders_of_persons`


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("private")
    generator = np.random.default_rng(0)
    for index in range(IMAGES):
        path = root / ("healthy", "ill")[index % 2] / f"{SECRET}-{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (28, 28), np.uint8)).save(path)
    (root / "unseen").mkdir()
    return root


def run(*arguments: object) -> Result:
    options = ["--eps", "2", "--batch-size", "16", "--workers", "0", "--device", "cpu"]
    return CliRunner().invoke(command.main, [*options, *map(str, arguments)])


def words(text: str) -> set[str]:
    return set(text.replace(",", " ").replace(":", " ").replace("(", " ").split())


def test_it_writes_an_artifact_whose_every_claim_holds_and_shows_no_private_value(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "artifact.h5"
    result = run("--data", data, "--output", output, "--json")
    assert result.exit_code == 0, result.stderr
    assert audit_artifact(output).valid
    ledger = read_artifact(output).ledger
    assert json.loads(result.stdout) == {
        "artifact": str(output),
        "epsilon": 2.0,
        "delta": 1e-6,
        "relation": "add-or-remove-one",
        "sigma": ledger.sigma,
        "sensitivity": ledger.sensitivity,
        "sigma_features": ledger.sigma / 2**ledger.lattice_exponent,
        "sensitivity_features": ledger.sensitivity / 2**ledger.lattice_exponent,
        "dimension": 3840,
        "unit_of_privacy": "one image",
        "release_id": ledger.release_id,
    }
    assert "treated as public" in result.stderr
    assert "folder of class folders: 3 classes ('healthy', 'ill', 'unseen'), 28×28 grey" in result.stderr
    assert "others, and hidden ones, are passed over" in result.stderr
    assert "(2, 1e-06)-differentially private" in result.stderr
    assert SECRET not in result.output
    assert not {str(IMAGES), "15", "14"} & words(result.output)  # neither all images nor those of a class


def test_a_class_folder_without_images_is_a_class(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "artifact.h5"
    assert run("--data", data, "--output", output).exit_code == 0
    artifact = read_artifact(output)
    assert artifact.classes == ("healthy", "ill", "unseen")
    assert (artifact.feature_map.resolution, artifact.feature_map.channels) == (28, 1)


def test_a_declared_schema_infers_nothing_and_every_option_reaches_the_ledger(data: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("unseen\nill\n\nhealthy\nother\n")
    output = tmp_path / "artifact.h5"
    result = run(
        *("--data", data, "--classes", f"@{names}", "--resolution", 32, "--channels", 3, "--strict"),
        *("--delta", 1e-5, "--relation", "replace-one", "--dataset", "clinic", "--features", "two-moments"),
        *("--budget-eps", 2, "--output", output),
    )
    assert result.exit_code == 0, result.stderr
    artifact = read_artifact(output)
    assert artifact.classes == ("unseen", "ill", "healthy", "other")
    assert (artifact.feature_map.resolution, artifact.feature_map.channels) == (32, 3)
    assert artifact.feature_map.moments == (1, 2)
    ledger = artifact.ledger
    assert (ledger.delta, ledger.relation.value, ledger.dataset_name) == (1e-5, "replace-one", "clinic")
    assert ledger.inferred_schema == ()
    assert "Warning" not in result.stderr


@pytest.mark.parametrize(("features", "squared"), [("default", 4), ("per-layer", 2)])
def test_replacing_one_costs_more_where_features_can_be_negative(
    features: str, squared: int, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "artifact.h5"
    result = run("--data", data, "--relation", "replace-one", "--features", features, "--output", output)
    assert result.exit_code == 0, result.stderr
    ledger = read_artifact(output).ledger
    assert ledger.non_negative_features is (squared == 2)
    record = 4**ledger.lattice_exponent + ledger.count_weight_lattice**2
    assert ledger.sensitivity_squared == squared * record


@pytest.mark.parametrize("option", ["--data", "--unit", "--sign-key", "--encoder-weights", "--classes"])
def test_what_a_release_is_made_of_is_not_replaced_by_it(option: str, tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_bytes(b"the only copy")
    data = () if option == "--data" else ("--data", tmp_path / "elsewhere")
    value = f"@{file}" if option == "--classes" else file
    result = run(*data, option, value, "--output", file, "--force")
    assert result.exit_code == 2
    assert "exists and is no artifact, and --force replaces nothing else" in result.stderr
    assert file.read_bytes() == b"the only copy"


def test_an_image_is_not_replaced_by_a_release_of_it_even_through_a_link(data: Path, tmp_path: Path) -> None:
    for label in ("healthy", "ill"):
        (tmp_path / "linked" / label).mkdir(parents=True)
        for image in (data / label).iterdir():
            (tmp_path / "linked" / label / image.name).symlink_to(image)
    image = next(data.rglob("*.png"))
    before = image.read_bytes()
    result = run("--data", tmp_path / "linked", "--output", image, "--force")
    assert (result.exit_code, image.read_bytes()) == (2, before)


def test_an_artifact_among_the_data_is_replaced_by_the_next(data: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(data)
    output = tmp_path / "data" / "artifact.h5"
    for _ in range(2):
        assert run("--data", tmp_path / "data", "--output", output, "--force").exit_code == 0
    output.unlink()


def test_a_file_that_only_is_called_as_a_signature_is_not_replaced(data: Path, tmp_path: Path) -> None:
    key, output = tmp_path / "a.h5.sig", tmp_path / "a.h5"
    private = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    key.write_bytes(private)
    result = run("--data", data, "--output", output, "--sign-key", key, "--force")
    assert (result.exit_code, "exists and is no signature" in result.stderr) == (2, True)
    assert run("--data", data, "--output", output, "--force").exit_code == 0  # unsigned: removes an old signature
    assert key.read_bytes() == private


def test_a_class_that_leads_nowhere_is_no_empty_class(data: Path, tmp_path: Path) -> None:
    for label in ("healthy", "unseen"):
        (tmp_path / "d" / label).mkdir(parents=True)
    (tmp_path / "d" / "healthy" / "1.png").write_bytes(next(data.rglob("*.png")).read_bytes())
    (tmp_path / "d" / "ill").symlink_to(tmp_path / "unmounted")
    result = run("--data", tmp_path / "d", "--classes", "healthy,ill,unseen", "--output", tmp_path / "a.h5")
    assert (result.exit_code, "a link that leads nowhere" in result.stderr) == (1, True)
    assert "unmounted" not in result.stderr and "'ill'" not in result.stderr


def test_a_variable_that_is_not_set_is_not_the_current_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    result = run("--data", "", "--output", tmp_path / "artifact.h5")
    assert result.exit_code == 2
    assert "it is empty, where a path belongs" in result.stderr
    assert not (tmp_path / "artifact.h5").exists()


def test_the_part_of_divided_data_that_is_read_is_shown_and_no_other_taken_for_it(tmp_path: Path) -> None:
    images, labels = np.zeros((4, 28, 28), np.uint8), np.zeros(4, np.int64)
    np.savez(tmp_path / "both.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    np.savez(tmp_path / "test.npz", x_test=images, y_test=labels)
    result = run("--data", tmp_path / "both.npz", "--classes", 2, "--output", tmp_path / "a.h5")
    assert "npz file, its part train: 2 classes ('0', '1')" in result.stderr
    result = run("--data", tmp_path / "test.npz", "--classes", 2, "--output", tmp_path / "b.h5")
    assert result.exit_code == 2
    assert "the data hold only the split 'test': confirm it with --split test" in result.stderr
    result = run("--data", tmp_path / "test.npz", "--classes", 2, "--output", tmp_path / "b.h5", "--split", "test")
    assert result.exit_code == 0, result.stderr


def test_strict_refuses_to_infer(data: Path, tmp_path: Path) -> None:
    result = run("--data", data, "--strict", "--output", tmp_path / "artifact.h5")
    assert result.exit_code == 2
    assert "--strict" in result.stderr


def test_a_dry_run_shows_the_noise_and_reads_no_image(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_image(*_: object, **__: object) -> None:
        raise AssertionError("an image was read")

    monkeypatch.setattr(schema, "summarise_headers", no_image)
    monkeypatch.setattr(image_loading, "prepare_range", no_image)
    monkeypatch.chdir(tmp_path)
    result = run("--data", data, "--dry-run", "--records", 60000, "--json")
    assert result.exit_code == 0, result.stderr
    shown = json.loads(result.stdout)
    sigma_features = shown["sigma"] / 2**25
    assert shown["noise_to_signal"] == pytest.approx(sigma_features * np.sqrt(3840) / 20000)
    assert "60,000 images" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_needs_no_data_when_the_classes_are_declared() -> None:
    result = run("--dry-run", "--records", 1000, "--classes", "10")
    assert result.exit_code == 0, result.stderr
    assert "10 classes × 3,840 features" in result.stderr


def test_a_promise_of_next_to_nothing_is_warned_of_before_anything_is_spent() -> None:
    asked = ("--dry-run", "--records", 1000, "--classes", "10")
    assert "Warning: delta 0.5 is" in run(*asked, "--delta", "0.5").stderr
    assert "Warning: epsilon 30 lets" in run(*asked, "--eps", "30").stderr
    assert "Warning" not in run(*asked).stderr


@pytest.mark.parametrize("arguments", [("--dry-run",), ("--records", 5), ("--dry-run", "--records", 5), ()])
def test_half_a_request_is_a_usage_error(arguments: tuple[object, ...], tmp_path: Path) -> None:
    result = run(*arguments, "--output", tmp_path / "artifact.h5")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")


def test_skipping_warns_without_number_or_name(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a long path would be folded in the panel, perhaps before its 5
    broken = tmp_path / "data"
    for name in "abcde":
        (broken / "ill").mkdir(parents=True, exist_ok=True)
        (broken / "ill" / f"{SECRET}-{name}.png").write_bytes(b"no image")
    good = next((data / "ill").iterdir())
    (broken / "ill" / "good.png").write_bytes(good.read_bytes())
    result = run("--data", broken, "--output", "artifact.h5", "--skip-unreadable")
    assert result.exit_code == 0, result.stderr
    assert "images that cannot be decoded are left out" in result.stderr
    assert SECRET not in result.output and "5" not in words(result.stderr)


def test_listing_unreadable_images_writes_a_private_file_and_releases_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{SECRET}.png").write_bytes(b"no image")
    listing, output = tmp_path / "bad.txt", tmp_path / "artifact.h5"
    result = run("--data", tmp_path / "data", "--output", output, "--list-unreadable", listing)
    assert result.exit_code == 0, result.stderr
    assert f"{SECRET}.png" in listing.read_text()
    assert listing.stat().st_mode & 0o077 == 0
    assert SECRET not in result.output
    assert not output.exists()


def test_listing_needs_no_epsilon_and_names_whatever_place_the_data_are_refused_for(data: Path, tmp_path: Path) -> None:
    listing = tmp_path / "bad.txt"
    arguments = ["--data", str(data), "--classes", "ill,unseen", "--workers", "0"]
    refused = CliRunner().invoke(command.main, [*arguments, "--eps", "2", "--output", str(tmp_path / "a.h5")])
    assert refused.exit_code == 2
    assert "a class folder is not among the declared classes" in refused.stderr
    assert "(--list-unreadable FILE writes down which it is)" in refused.stderr
    assert "healthy" not in refused.output
    listed = CliRunner().invoke(command.main, [*arguments, "--list-unreadable", str(listing)])
    assert listed.exit_code == 0, listed.stderr
    assert "'healthy': a class folder is not among the declared classes" in listing.read_text()
    assert "healthy" not in listed.output
    missing = CliRunner().invoke(command.main, arguments)
    assert (missing.exit_code, "--eps is missing" in missing.stderr) == (2, True)


def test_a_log_file_holds_no_count_even_where_colour_is_forced(data: Path, tmp_path: Path) -> None:
    arguments = ["--data", data, "--eps", "2", "--workers", "0", "--output", tmp_path / "artifact.h5"]
    finished = subprocess.run(
        [sys.executable, "-m", "dpmepf.embed", *map(str, arguments)],
        env=os.environ | {"FORCE_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "the number of images is private" in finished.stderr
    assert f"/{IMAGES}" not in finished.stderr  # a bar counts as 16/29


def test_the_live_bar_is_for_a_terminal_and_leaves_no_count_behind(data: Path, tmp_path: Path) -> None:
    shown, terminal = os.openpty()
    command_line = [sys.executable, "-m", "dpmepf.embed", "--data", data, "--eps", "2", "--workers", "0"]
    process = subprocess.Popen(
        [*command_line, "--batch-size", "16", "--output", tmp_path / "artifact.h5"],
        stderr=terminal,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "150"},
    )
    os.close(terminal)
    text = read_to_the_end(shown)
    assert process.wait() == 0
    last_erased = text.rindex("\x1b[2K")
    assert f"/{IMAGES}" in text[:last_erased]
    assert f"/{IMAGES}" not in text[last_erased:]
    assert "Released once" in text[last_erased:]


def read_to_the_end(terminal: int) -> str:
    parts = []
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
        while part := os.read(terminal, 65536):
            parts.append(part)
    os.close(terminal)
    return b"".join(parts).decode()


def test_ctrl_c_writes_nothing_and_says_so(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "embed_images", interrupted)
    result = run("--data", data, "--output", tmp_path / "artifact.h5")
    assert result.exit_code == 130
    assert "nothing was released and nothing was written" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_option_has_help() -> None:
    options = [parameter for parameter in command.main.params if isinstance(parameter, click.Option)]
    assert len(options) >= 22
    assert all(option.help for option in options)


def test_there_is_no_option_to_seed_or_to_leave_out_the_noise() -> None:
    names = " ".join(name for parameter in command.main.params for name in parameter.opts)
    assert "seed" not in names and "noise" not in names


def test_the_module_runs_as_the_command_does() -> None:
    shown = subprocess.run([sys.executable, "-m", "dpmepf.embed", "--help"], capture_output=True, text=True, check=True)
    assert "dpmepf-embed" in shown.stdout and "--eps" in shown.stdout


def test_a_release_is_charged_and_one_over_budget_is_refused_before_an_image_is_read(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = tmp_path / "book.sqlite"
    options = ("--data", data, "--dataset", "clinic", "--register", book)
    first = run(*options, "--budget-eps", 2.5, "--output", tmp_path / "first.h5")
    assert first.exit_code == 0, first.stderr
    assert "no register" not in first.stderr
    (release,) = Register(book).read().accounts["clinic"].releases
    assert release.ledger == read_artifact(tmp_path / "first.h5").ledger

    def no_image(*_: object, **__: object) -> None:
        raise AssertionError("an image was embedded")

    monkeypatch.setattr(pipeline, "sum_images", no_image)
    second = run(*options, "--output", tmp_path / "second.h5")
    assert second.exit_code == 1
    assert "out of budget" in second.stderr
    assert "--eps 1." in second.stderr
    assert not (tmp_path / "second.h5").exists()
    assert len(Register(book).read().accounts["clinic"].releases) == 1


def test_the_budget_is_kept_as_it_was_given(data: Path, tmp_path: Path) -> None:
    budget = ("--budget-eps", 3, "--budget-delta", 1e-7, "--relation", "replace-one")
    options = ("--data", data, "--dataset", "clinic", "--eps", 1, "--delta", 1e-8, *budget)
    result = run(*options, "--register", tmp_path / "book.sqlite", "--output", tmp_path / "artifact.h5")
    assert result.exit_code == 0, result.stderr
    assert Register(tmp_path / "book.sqlite").read().accounts["clinic"].budget == Budget(
        epsilon=3.0, delta=1e-7, relation=NeighbouringRelation.REPLACE_ONE, unit_of_privacy=ONE_IMAGE
    )


def test_a_name_is_enough_for_the_register_in_the_state_folder(data: Path, tmp_path: Path) -> None:
    result = run("--data", data, "--dataset", "clinic", "--budget-eps", 2, "--output", tmp_path / "artifact.h5")
    assert result.exit_code == 0, result.stderr
    assert "a new account, clinic has spent epsilon 2 of 2" in result.stderr
    assert len(Register(default_register()).read().accounts["clinic"].releases) == 1
    assert default_register().is_relative_to(tmp_path)


def test_without_a_register_the_command_says_that_releases_add_up(data: Path, tmp_path: Path) -> None:
    result = run("--data", data, "--output", tmp_path / "artifact.h5")
    assert "this release is in no register" in result.stderr
    assert not default_register().exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--dataset", "clinic"), "set its budget once"),
        (("--budget-eps", 2), "name yours with --dataset"),
        (("--register", "book.sqlite"), "name yours with --dataset"),
        (("--dataset", "clinic", "--budget-delta", 1e-5), "--budget-delta belongs to --budget-eps"),
        (("--dataset", "clinic", "--budget-eps", 2, "--register", "artifact.h5"), "or its signature would be"),
    ],
)
def test_half_a_register_is_refused_in_a_sentence(
    options: tuple[object, ...], sentence: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("--data", data, *options)
    assert result.exit_code in (1, 2)
    assert sentence in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_noise_that_fails_leaves_the_charge_and_no_artifact(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_entropy(*_: object, **__: object) -> None:
        raise NoiseError("no entropy")

    monkeypatch.setattr(release_module, "add_discrete_gaussian_noise", no_entropy)
    result = run("--data", data, "--dataset", "clinic", "--budget-eps", 2, "--output", tmp_path / "artifact.h5")
    assert result.exit_code == 1
    assert "no entropy; the release was charged" in result.stderr
    assert not (tmp_path / "artifact.h5").exists()
    assert len(Register(default_register()).read().accounts["clinic"].releases) == 1


def test_a_signing_key_signs_and_a_wrong_one_is_noticed_before_the_data_are_opened(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Ed25519PrivateKey.generate()
    private = tmp_path / "custodian.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    output = tmp_path / "artifact.h5"
    result = run("--data", data, "--sign-key", private, "--output", output)
    assert result.exit_code == 0, result.stderr
    verify_file(output, key.public_key())
    unsigned = run("--data", data, "--output", output, "--force")
    assert (unsigned.exit_code, signature_file(output).exists()) == (0, False)  # it was of the file that is gone
    assert run("--data", data, "--sign-key", private, "--output", output, "--force").exit_code == 0
    verify_file(output, key.public_key())
    output.unlink()
    again = run("--data", data, "--sign-key", private, "--output", output)
    assert (again.exit_code, "exists already" in again.stderr) == (2, True)  # the signature of the first

    def no_data(*_: object, **__: object) -> None:
        raise AssertionError("the data were opened")

    monkeypatch.setattr(request, "open_images", no_data)
    private.write_text("no key")
    wrong = run("--data", data, "--sign-key", private, "--output", tmp_path / "other.h5")
    assert (wrong.exit_code, "holds no Ed25519 private key" in wrong.stderr) == (2, True)


def test_a_signature_that_cannot_be_written_does_not_hide_that_the_release_was_made(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, output = tmp_path / "custodian.pem", tmp_path / "artifact.h5"
    key = Ed25519PrivateKey.generate()
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def disk_full(*_: object, **__: object) -> None:
        raise ArtifactWriteError("the disk is full, and nothing was left behind")

    monkeypatch.setattr(run_module, "sign_file", disk_full)
    result = run("--data", data, "--sign-key", private, "--output", output)
    assert result.exit_code == 1
    assert "nothing was left behind; " in result.stderr
    assert f"{output} is complete: the release was made, and counts" in result.stderr.replace("\n", "")
    assert audit_artifact(output).valid


# The guarantee for persons


def folders_of_persons(root: Path) -> Path:
    generator = np.random.default_rng(0)
    for index in range(IMAGES):
        path = root / ("healthy", "ill")[index % 2] / f"{SECRET}-{index % PERSONS}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (28, 28), np.uint8)).save(path)
    return root


def test_folders_or_a_list_of_persons_make_a_release_for_persons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noised: list[np.ndarray] = []
    take = ClassSums.take

    def recording(self: ClassSums) -> ExactSums:
        sums = take(self)
        noised.append(sums.weighted_counts.copy())
        return sums

    monkeypatch.setattr(ClassSums, "take", recording)
    data, output = folders_of_persons(tmp_path / "data"), tmp_path / "artifact.h5"
    names = [path.relative_to(data).as_posix() for path in sorted(data.rglob("*.png"))]
    table = tmp_path / "persons.csv"
    table.write_text("image,person\n" + "".join(f"{name},{name.split('/')[1]}\n" for name in names))
    for options in (("--unit-from-folder",), ("--unit", table)):
        result = run("--data", data, "--classes", "healthy,ill", *options, "--output", output, "--force", "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["unit_of_privacy"] == "one person"
        assert "for one person" in result.stderr
        assert SECRET not in result.output
        report = audit_artifact(output)
        assert report.valid and report.to_dict()["unit_of_privacy"] == "one person"
        records = noised.pop().sum() / read_artifact(output).ledger.count_weight_lattice
        assert records < 2 * PERSONS < IMAGES  # a person in two classes moves their sizes by little more than √2


def test_a_list_without_every_image_is_refused_before_anything_is_charged(data: Path, tmp_path: Path) -> None:
    table, register = tmp_path / "persons.csv", tmp_path / "register.sqlite"
    table.write_text("image,person\n")
    result = run(
        *(
            "--data",
            data,
            "--classes",
            "healthy,ill,unseen",
            "--unit",
            table,
            "--dataset",
            "clinic",
            "--budget-eps",
            2,
            "--register",
            register,
        ),
        *("--output", tmp_path / "artifact.h5"),
    )
    assert result.exit_code == 2
    assert "does not name the person of every image" in result.stderr
    assert not register.exists()


def test_two_ways_to_name_persons_are_one_too_many(data: Path, tmp_path: Path) -> None:
    result = run("--data", data, "--unit", tmp_path / "persons.csv", "--unit-from-folder")
    assert result.exit_code == 2
    assert "choose one" in result.stderr


def test_a_dry_run_counts_persons_where_they_are_the_unit() -> None:
    result = run("--classes", "a,b", "--dry-run", "--records", 500, "--unit-from-folder")
    assert result.exit_code == 0, result.stderr
    assert "500 persons" in result.stderr


def test_a_budget_for_images_takes_no_release_for_persons_nor_the_other_way_round(tmp_path: Path) -> None:
    data = folders_of_persons(tmp_path / "data")
    common = (
        "--data",
        data,
        "--classes",
        "healthy,ill",
        "--dataset",
        "clinic",
        "--output",
        tmp_path / "a.h5",
        "--force",
    )
    for unit, other in (((), ("--unit-from-folder",)), (("--unit-from-folder",), ())):
        register = ("--register", tmp_path / f"{len(unit)}.sqlite")
        assert run(*common, *register, "--budget-eps", 9, *unit).exit_code == 0
        result = run(*common, *register, *other)
        assert result.exit_code == 1
        assert "release it as its budget says" in result.stderr
        assert len(Register(register[1]).read().accounts["clinic"].releases) == 1
