"""Batches are the same for every number of workers and start method; what goes wrong is one sentence."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import io
import multiprocessing
import os
import platform
import signal
import struct
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dpmepf.shared import image_decoding, image_loading, image_workers
from dpmepf.shared.errors import UsageError
from dpmepf.shared.image_decoding import NOT_AN_IMAGE, DecodingError, decode_image, read_header
from dpmepf.shared.image_errors import UnreadableImageError, WorkerDiedError
from dpmepf.shared.image_loading import find_unreadable, iterate_batches, load_all
from dpmepf.shared.image_ranges import prepare_range, summarise_headers
from dpmepf.shared.image_sources import open_images
from dpmepf.shared.image_workers import AbandonedError, go_on, map_ranges

FORMS = ("folder", "zip", "npz", "npz that fits")


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_loading, "_RANGE", 4)


def make_source(root: Path, form: str, *, count: int = 23, public: bool = False):
    side = 28 if form == "npz that fits" else 20
    images = np.random.default_rng(3).integers(0, 256, (count, side, side, 3), np.uint8)
    labels = np.arange(count) * 3 // count
    if form.startswith("npz"):
        np.savez(root / "d.npz", x=images, y=labels)
        return open_images(root / "d.npz", classes=("0", "1", "2"), public=public)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        (root / "d" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / "d" / str(label) / f"{index:03}.png")
    if form == "folder":
        return open_images(root / "d", public=public)
    with zipfile.ZipFile(root / "d.zip", "w") as archive:
        for path in (root / "d").rglob("*.png"):
            archive.write(path, path.relative_to(root / "d"))
    return open_images(root / "d.zip", public=public)


def damage(root: Path, *indices: int) -> None:
    for index in indices:
        next((root / "d").rglob(f"{index:03}.png")).write_text("this is text")


def batches(source, **options):
    return list(iterate_batches(source, **{"resolution": 28, "channels": 3, "batch_size": 10, "workers": 0} | options))


@pytest.mark.parametrize("form", FORMS)
def test_batches_hold_every_image_in_order_and_the_last_is_short(tmp_path, form):
    source = make_source(tmp_path, form)
    found = batches(source)
    assert [len(images) for images, _ in found] == [10, 10, 3]
    for images, labels in found:
        assert images.shape[1:] == (3, 28, 28)
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert torch.cat([labels for _, labels in found]).tolist() == source.labels.tolist()
    alone = [batches(source, batch_size=1)[index][0][0] for index in (0, 11, 22)]
    together = torch.cat([images for images, _ in found])
    assert all(torch.equal(one, together[index]) for one, index in zip(alone, (0, 11, 22), strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("workers", [1, 3, None])
def test_batches_do_not_depend_on_the_number_of_workers(tmp_path, form, workers):
    source = make_source(tmp_path, form)
    for (images, labels), (expected, expected_labels) in zip(
        batches(source, workers=workers), batches(source), strict=True
    ):
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)


SPAWNING = """
if __name__ == "__main__":  # a spawned worker imports this file again, and must not come here
    import hashlib, multiprocessing, sys
    from pathlib import Path
    from dpmepf.shared import image_loading
    from dpmepf.shared.image_sources import open_images

    multiprocessing.set_start_method("spawn")
    image_loading._RANGE = 4
    images, _ = image_loading.load_all(open_images(Path(sys.argv[1])), resolution=28, channels=3, workers=2)
    print(hashlib.sha256(images.numpy().tobytes()).hexdigest(), len(multiprocessing.active_children()))
"""


def test_batches_are_the_same_under_spawn(tmp_path):
    source = make_source(tmp_path, "zip")
    (tmp_path / "script.py").write_text(SPAWNING)
    output = subprocess.check_output([sys.executable, tmp_path / "script.py", tmp_path / "d.zip"], text=True)
    images, _ = load_all(source, resolution=28, channels=3, workers=0)
    assert output == hashlib.sha256(images.numpy().tobytes()).hexdigest() + " 0\n"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("public", [False, True])
def test_a_damaged_image_stops_the_loading_and_only_public_data_are_named(tmp_path, workers, public):
    source = make_source(tmp_path, "folder", public=public)
    damage(tmp_path, 13)
    with pytest.raises(UnreadableImageError) as caught:
        batches(source, workers=workers)
    assert caught.value.location.endswith("1/013.png")
    assert ("013" in str(caught.value)) == public
    assert (str(tmp_path) in str(caught.value)) == public
    assert "--skip-unreadable" in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_leaves_out_damaged_images_and_keeps_the_other_batches_as_they_were(tmp_path, workers):
    source = make_source(tmp_path, "folder")
    whole = batches(source)
    damage(tmp_path, 3, 20, 21, 22)
    skipped: list[UnreadableImageError] = []
    found = batches(source, workers=workers, skip_unreadable=True, on_unreadable=skipped.append)
    assert [len(images) for images, _ in found] == [9, 10]  # the third batch held nothing else
    assert torch.equal(found[1][0], whole[1][0])
    assert torch.equal(found[0][0], torch.cat([whole[0][0][:3], whole[0][0][4:]]))
    assert found[0][1].tolist() == [*whole[0][1][:3], *whole[0][1][4:]]
    assert [error.location[-7:] for error in skipped] == ["003.png", "020.png", "021.png", "022.png"]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_whose_file_cannot_be_read_is_not_left_out_but_listed(tmp_path, workers):
    """A class folder that the user may not read would be an empty class."""
    source = make_source(tmp_path, "folder")
    damage(tmp_path, 3)
    lost = next((tmp_path / "d").rglob("007.png"))
    lost.unlink()
    lost.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UnreadableImageError, match=r"its file cannot be read; make it readable or remove it$"):
        list(iterate_batches(source, resolution=20, channels=3, batch_size=8, workers=workers, skip_unreadable=True))
    assert [Path(error.location).name for error in find_unreadable(source, workers=workers)] == ["003.png", "007.png"]


def test_a_disk_that_fails_is_not_a_damaged_image_but_a_damaged_member_of_an_archive_is(tmp_path, monkeypatch):
    """bz2 tells of damage by an OSError, as a disk does of its own failure."""
    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_BZIP2) as archive:
        Image.new("L", (20, 20)).save(whole := io.BytesIO(), "PNG")
        archive.writestr("1.png", whole.getvalue())
    content = bytearray((tmp_path / "d.zip").read_bytes())
    content[30 + len("1.png") + 4] ^= 0xFF  # the first block's magic
    (tmp_path / "d.zip").write_bytes(content)
    source = open_images(tmp_path / "d.zip")
    assert [error.reason for error in find_unreadable(source, workers=0)] == [NOT_AN_IMAGE]

    def fail(name, size=-1):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(source.members, "read", fail)
    with pytest.raises(UnreadableImageError, match="its file cannot be read; make it readable"):
        load_all(source, resolution=28, channels=1, workers=0, skip_unreadable=True)


def damaged_tiffs() -> list[bytes]:
    """Of every compression and with a palette, with bytes flipped."""
    random = np.random.default_rng(0)
    grey = Image.fromarray(random.integers(0, 256, (40, 40), np.uint8))
    files = []
    for compression in ("group3", "group4", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        modes = {"group3": "1", "group4": "1", "tiff_adobe_deflate": "P"}
        image = grey.convert(modes.get(compression, "L"))
        image.save(whole := io.BytesIO(), "TIFF", compression=compression)
        for _ in range(10):
            content = bytearray(whole.getvalue())
            for place in random.integers(8, len(content), 5):
                content[place] ^= int(random.integers(1, 256))
            files.append(bytes(content))
    return files


def test_damaged_images_are_not_talked_about_by_the_library_that_reads_them(tmp_path, capfd):
    """libtiff writes to stderr itself. Planted: a process in which Pillow alone was imported, where it does."""
    files = damaged_tiffs()
    for read in (decode_image, read_header):
        for content in files:
            with contextlib.suppress(DecodingError):
                read(content)
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")
    for place, content in enumerate(files):
        (tmp_path / f"{place}.tif").write_bytes(content)
    code = """
import contextlib, pathlib, sys, warnings
from PIL import Image
warnings.simplefilter("ignore")
for file in pathlib.Path(sys.argv[1]).iterdir():
    with contextlib.suppress(Exception):
        Image.open(file).load()
"""
    loud = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert "Fax4Decode" in loud.stderr and "ZIPDecode" in loud.stderr


def tiff_with_less_than_it_says(kind: str) -> bytes:
    """32×32 pixels of which the data hold eight rows: a tile of JPEG, or a strip of a fax."""
    if kind == "jpeg":
        Image.new("L", (32, 8), 200).save(data := io.BytesIO(), "JPEG")
        compression, bits, form = 7, 8, {322: 32, 323: 32_000, 324: None, 325: None}
    else:
        rows = Image.fromarray(np.random.default_rng(0).random((8, 32)) < 0.5)
        rows.save(whole := io.BytesIO(), "TIFF", compression="group4")
        stored = Image.open(io.BytesIO(whole.getvalue()))
        start, length = stored.tag_v2[273][0], stored.tag_v2[279][0]
        data = io.BytesIO(whole.getvalue()[start : start + length])
        compression, bits, form = 4, 1, {273: None, 278: 32, 279: None}
    content = data.getvalue()
    tags = {256: 32, 257: 32, 258: bits, 259: compression, 262: 1, 277: 1, **form}
    place = 8 + 2 + 12 * len(tags) + 4
    values = {
        tag: place if tag in (273, 324) else len(content) if value is None else value for tag, value in tags.items()
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(values.items()))
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + content


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone fills memory when it is asked to")
@pytest.mark.parametrize("kind", ["jpeg", "fax"])
def test_what_an_image_does_not_fill_is_not_what_memory_held(tmp_path, kind):
    """Pillow 12 gives the two bytes that memory is filled with; on the way of a release, parts of other images."""
    (tmp_path / "short.tif").write_bytes(tiff_with_less_than_it_says(kind))
    code = """
import pathlib, sys
from dpmepf.shared.image_decoding import decode_image
sys.stdout.buffer.write(decode_image(pathlib.Path(sys.argv[1]).read_bytes()).convert("L").tobytes())
"""
    shown = {
        subprocess.run(
            [sys.executable, "-c", code, tmp_path / "short.tif"],
            env={**os.environ, "MALLOC_PERTURB_": filled},
            capture_output=True,
            check=True,
        ).stdout
        for filled in ("85", "170")
    }
    (pixels,) = shown
    assert len(pixels) == 32 * 32 and len(set(pixels[: 8 * 32])) > (kind == "fax")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone overwrites memory when it is asked to")
def test_decoding_processes_overwrite_what_they_free(tmp_path):
    source = make_source(tmp_path, "folder")
    assert list(map_ranges(freed_bytes, source, [(0, 1)], workers=1)) == [{0x5A}]
    assert freed_bytes(source, 0, 1) == {7}  # here nobody asked for it


def freed_bytes(source: object, start: int, stop: int) -> set[int]:
    """What is left of a block of sevens, of 64 KiB, after it was freed; the first bytes are the allocator's own."""
    copy = ctypes.create_string_buffer(32_768)  # before: afterwards it could be put into the block
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    block, guard = libc.malloc(65_536), libc.malloc(64)  # behind the guard nothing grows over the block
    ctypes.memset(block, 7, 65_536)
    libc.free(block)
    ctypes.memmove(copy, block + 1024, len(copy))
    libc.free(guard)
    return set(copy.raw)


@pytest.mark.parametrize(("version", "reads"), [("13.0.0", True), ("14.1", True), ("12.3.0", False), ("11.0.0", False)])
def test_a_pillow_that_leaves_memory_in_a_tiff_reads_none(version, reads):
    assert image_decoding._reads_tiff(version) is reads


def test_where_libtiff_cannot_be_silenced_no_tiff_is_read(monkeypatch):
    monkeypatch.setattr(image_decoding, "READS_TIFF", False)
    Image.new("L", (4, 4)).save(whole := io.BytesIO(), "TIFF")
    for read in (decode_image, read_header):
        with pytest.raises(DecodingError, match="convert it to PNG"):
            read(whole.getvalue())


def test_an_array_value_out_of_range_is_an_unreadable_image(tmp_path):
    images = np.random.default_rng(0).random((6, 28, 28), np.float32)
    images[2, 3, 4], images[5, 0, 0] = np.nan, 1.5
    np.savez(tmp_path / "a.npz", x=images)
    source = open_images(tmp_path / "a.npz")
    with pytest.raises(UnreadableImageError, match=r"leave \[0, 1\]"):
        batches(source, channels=1)
    kept, _ = load_all(source, resolution=28, channels=1, skip_unreadable=True)
    assert np.array_equal(kept[:, 0], np.rint(images[[0, 1, 3, 4]] * 255))
    places = [error.location.partition(": ")[2] for error in find_unreadable(source)]
    assert places == ["image 2, counted from 0", "image 5, counted from 0"]


@pytest.mark.parametrize("workers", [0, 2])
def test_find_unreadable_lists_the_places_and_reasons(tmp_path, workers):
    source = make_source(tmp_path, "folder")
    damage(tmp_path, 1, 17)
    errors = find_unreadable(source, workers=workers)
    assert [error.location[-9:] for error in errors] == ["0/001.png", "2/017.png"]
    assert {error.reason for error in errors} == {"it is damaged, or no PNG, JPEG, BMP, WebP or TIFF image"}


def test_a_source_of_no_record_gives_no_batch(tmp_path):
    (tmp_path / "cat").mkdir()
    source = open_images(tmp_path)
    assert batches(source, workers=2) == []
    images, labels = load_all(source, resolution=28, channels=1)
    assert (images.shape, labels.shape) == ((0, 1, 28, 28), (0,))


def test_load_all_equals_the_joined_batches(tmp_path):
    source = make_source(tmp_path, "zip")
    images, labels = load_all(source, resolution=32, channels=1)
    found = batches(source, resolution=32, channels=1)
    assert torch.equal(images, torch.cat([images for images, _ in found]))
    assert torch.equal(labels, torch.from_numpy(source.labels))


def _die(source, start, stop):
    if start >= 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return start


def test_a_dead_worker_is_one_sentence_and_no_hang(tmp_path):
    source = make_source(tmp_path, "folder")
    with pytest.raises(WorkerDiedError, match="--workers"):
        list(map_ranges(_die, source, [(start, start + 1) for start in range(20)], workers=2))
    assert not multiprocessing.active_children()


def test_leaving_early_ends_the_workers(tmp_path):
    iterator = iterate_batches(make_source(tmp_path, "folder"), resolution=28, channels=3, batch_size=4, workers=2)
    next(iterator)
    assert len(multiprocessing.active_children()) == 2
    iterator.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


def _niceness(source, start, stop):
    return os.nice(0)


@pytest.mark.parametrize(("give_way", "more"), [(True, 10), (False, 0)])
def test_workers_give_way_where_an_encoder_shares_the_cores(tmp_path, give_way, more):
    source = make_source(tmp_path, "folder")
    found = list(map_ranges(_niceness, source, [(0, 1), (1, 2)], workers=2, give_way=give_way))
    assert found == [min(os.nice(0) + more, 19)] * 2


def _slowly(source, start, stop):
    for _ in range(start, stop):
        time.sleep(0.1)
        go_on()


def test_an_interruption_ends_no_process_of_whoever_called(tmp_path):
    other = multiprocessing.Process(target=time.sleep, args=(60,), daemon=True)
    other.start()
    try:
        iterator = map_ranges(_slowly, make_source(tmp_path, "folder"), [(0, 1), *[(0, 100)] * 20], workers=2)
        next(iterator)
        with pytest.raises(KeyboardInterrupt):
            iterator.throw(KeyboardInterrupt)
        assert multiprocessing.active_children() == [other]
    finally:
        other.kill()
        other.join()


def test_an_interruption_before_the_workers_have_begun_stays_one(tmp_path, monkeypatch):
    """The executor's own thread may not have been started then, and cannot be joined."""
    iterator = map_ranges(_slowly, make_source(tmp_path, "folder"), [(0, 1), *[(0, 100)] * 20], workers=1)
    next(iterator)
    shutdown = ProcessPoolExecutor.shutdown

    def fail(executor, **options):
        shutdown(executor, **options)
        raise RuntimeError("cannot join thread before it is started")

    monkeypatch.setattr(ProcessPoolExecutor, "shutdown", fail)
    with pytest.raises(KeyboardInterrupt):
        iterator.throw(KeyboardInterrupt)


def test_leaving_early_waits_for_no_more_than_an_image_of_each_worker(tmp_path):
    """Of large images a range takes minutes, and several are with the workers already."""
    source = make_source(tmp_path, "folder")
    iterator = map_ranges(_slowly, source, [(0, 1), *[(0, 100)] * 20], workers=2)
    next(iterator)
    start = time.monotonic()
    iterator.close()
    assert time.monotonic() - start < 8  # one range takes 10


STUCK = """
import contextlib, os, sys, time
from pathlib import Path
from dpmepf.shared.image_sources import open_images
from dpmepf.shared.image_workers import map_ranges

def stuck(source, start, stop):
    if start:
        Path(source.members.root, f"pid-{os.getpid()}").touch()
        time.sleep(1000)

ranges = ((i, i + 1) for i in range(40))
with contextlib.closing(map_ranges(stuck, open_images(Path(sys.argv[1])), ranges, workers=2)) as found:
    next(found)
    while len(list(Path(sys.argv[1]).glob("pid-*"))) < 2:
        time.sleep(0.01)
    print("leaving", flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to look for processes")
def test_ctrl_c_ends_waiting_for_workers_that_are_stuck(tmp_path):
    make_source(tmp_path, "folder", count=3)
    command = [sys.executable, "-c", STUCK, tmp_path / "d"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "leaving\n"
        workers = [int(path.name[4:]) for path in (tmp_path / "d").glob("pid-*")]
        time.sleep(0.3)  # until it waits for them
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=60)
        finally:
            process.kill()
    wait_until(lambda: not any(_runs(pid) for pid in workers))


@pytest.mark.parametrize("work", [functools.partial(prepare_range, resolution=28, channels=3), summarise_headers])
def test_the_work_on_a_range_looks_after_each_image_whether_it_is_wanted(tmp_path, monkeypatch, work):
    monkeypatch.setattr(image_workers, "_abandoned", multiprocessing.RawValue(ctypes.c_bool, True))
    with pytest.raises(AbandonedError):
        work(make_source(tmp_path, "folder"), 0, 5)


WORKING = """
import os, sys, time
from pathlib import Path
from dpmepf.shared.image_sources import open_images
from dpmepf.shared.image_workers import map_ranges

def busy(source, start, stop):
    Path(source.members.root, f"pid-{os.getpid()}").touch()
    time.sleep(0.02)

for _ in map_ranges(busy, open_images(Path(sys.argv[1])), ((i, i) for i in range(10**6)), workers=2):
    pass
"""


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to look for processes")
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_a_main_process_that_is_interrupted_or_killed(tmp_path, signal_number):
    make_source(tmp_path, "folder", count=3)
    process = subprocess.Popen(
        [sys.executable, "-c", WORKING, tmp_path / "d"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_until(lambda: len(list((tmp_path / "d").glob("pid-*"))) == 2)
    workers = [int(path.name[4:]) for path in (tmp_path / "d").glob("pid-*")]
    if signal_number == signal.SIGINT:
        os.killpg(process.pid, signal_number)  # as a terminal does it
    else:
        process.kill()
    _, errors = process.communicate(timeout=60)
    assert errors.count("Traceback") <= 1  # the main process's KeyboardInterrupt; the workers are silent
    wait_until(lambda: not any(_runs(pid) for pid in workers))


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_unusable_settings_are_usage_errors(tmp_path):
    source = make_source(tmp_path, "folder", count=3)
    with pytest.raises(UsageError, match="--batch-size"):
        batches(source, batch_size=0)
    with pytest.raises(UsageError, match="--workers"):
        batches(source, workers=-1)


def test_by_default_every_core_decodes(tmp_path, monkeypatch):
    asked = []

    def mapped(function, source, ranges, *, workers, give_way):
        asked.append(workers)
        return map_ranges(function, source, ranges, workers=0)

    monkeypatch.setattr(image_loading, "map_ranges", mapped)
    monkeypatch.setattr(image_loading, "usable_cores", lambda: 7)
    assert len(batches(make_source(tmp_path, "folder"), workers=None)) == 3
    assert asked == [7]


def test_mnist_sized_arrays_are_cut_into_batches_at_memory_speed(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((20_000, 28, 28), np.uint8))
    source = open_images(tmp_path / "a.npz")
    start = time.process_time()
    total = sum(len(images) for images, _ in iterate_batches(source, resolution=28, channels=1, batch_size=500))
    assert total == 20_000
    assert time.process_time() - start < 1  # the encoder takes some tens of seconds for as many


def test_worker_processes_need_no_torch():
    script = "import sys, dpmepf.shared.image_ranges, dpmepf.shared.image_workers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
