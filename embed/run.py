"""A whole release: from a request to an artifact in its file. `dpmepf-embed` is this, and what it shows."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import ImageFile

from dpmepf.artifacts.artifact import Artifact
from dpmepf.artifacts.hdf5_file import write_artifact
from dpmepf.artifacts.register import Register, files_of
from dpmepf.artifacts.signature import (
    check_signature_target,
    load_signing_key,
    remove_old_signature,
    sign_file,
    signature_file,
)
from dpmepf.artifacts.tables import weakness
from dpmepf.embed.checkpoint import Checkpoint
from dpmepf.embed.checkpoint_place import place_checkpoint
from dpmepf.embed.distributed import Processes
from dpmepf.embed.outcome import Stage, stopping_plainly
from dpmepf.embed.persons import persons_from_folders, persons_from_list
from dpmepf.embed.pipeline import embed_images, embed_share, plan
from dpmepf.embed.request import ReleaseRequest, check_output
from dpmepf.shared.allocator import keep_freed_memory
from dpmepf.shared.errors import DpmepfError, UsageError, without_details
from dpmepf.shared.feature_map import build_feature_map, describe_feature_map
from dpmepf.shared.feature_map_description import SUPPORTED_RESOLUTIONS, FeatureMapDescription
from dpmepf.shared.image_decoding import EXTENSIONS
from dpmepf.shared.image_source_types import EncodedImageSource, ImageSource
from dpmepf.shared.processes import started_again_on_failure
from dpmepf.shared.schema import ImageSchema, infer_schema

ASSUMED_RESOLUTION, ASSUMED_CHANNELS = 32, 3  # of images that nobody has looked at

Progress = tuple[Callable[[int], None], Callable[[int], None]]
"""Called with the number of images just embedded, and with that of coordinates just noised."""


def _nothing(*_: object) -> None:
    pass


def _no_passphrase() -> str:
    raise UsageError("the signing key is encrypted: give its passphrase, or a key without one")


@dataclass(frozen=True, kw_only=True)
class ReleaseCallbacks:
    """What a release tells while it is made, to the custodian alone, and what it asks.

    Fields:
        say, warn: called with a sentence.
        warn_from_any_process: the same, of what concerns one of several processes.
        on_schema: called with the images and what is public of them, before the first is embedded.
        progress: called with the number of images, which is private, and of coordinates to noise; around the work.
        on_release: called with the artifact when it is in its file, and the register that it was charged to.
        ask_passphrase: of an encrypted signing key.
    """

    say: Callable[[str], None] = _nothing
    warn: Callable[[str], None] = _nothing
    warn_from_any_process: Callable[[str], None] = _nothing
    on_schema: Callable[[ImageSource, ImageSchema], None] = _nothing
    progress: Callable[[int, int], AbstractContextManager[Progress]] = lambda images, draws: nullcontext(
        (_nothing, _nothing)
    )
    on_release: Callable[[Artifact, Register | None], None] = _nothing
    ask_passphrase: Callable[[], str] = _no_passphrase


class WithheldError(DpmepfError):
    """An error whose own text may quote a private value or name; the sentence says where it came up."""


def make_release(
    request: ReleaseRequest,
    *,
    processes: Processes | None = None,
    callbacks: ReleaseCallbacks | None = None,
) -> Artifact | None:
    """Embed the images that `request` names, release their class sums once, and write the artifact.

    Each call that gets as far as the noise spends ε anew. Nothing that it says or raises holds a count, a file name or
    a value of the data, except to `ReleaseCallbacks.progress`; with DPMEPF_DEBUG=1 in the environment errors that
    nobody foresaw, also those of callbacks, come through as they are.

    Args:
        processes: those that work on it together, joined (`distributed.joined`), all with the same request; None: this
            one alone.
    Returns: the artifact, or None in all processes but the first.
    Raises:
        DpmepfError: what cannot be used or met, and after which nothing was released unless it says so.
        KeyboardInterrupt: Ctrl-C; it says what became of the release.
    """
    _require_one_call(processes)
    _require_usual_settings(request)
    stage = Stage(request.output)
    try:
        with stopping_plainly(stage):
            return _make_release(request, processes, ReleaseCallbacks() if callbacks is None else callbacks, stage)
    except DpmepfError:
        raise
    except Exception as error:
        if os.environ.get("DPMEPF_DEBUG"):
            raise
        raise WithheldError(without_details(error)) from None


def _require_one_call(processes: Processes | None) -> None:
    """Refuse a call that is made more than once, each time for a release of its own."""
    several = "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if processes is None and several:
        raise UsageError(
            "this is one of several processes, each of which would make a release of its own: start dpmepf-embed with "
            "torchrun, or this program by itself"
        )
    if processes is None and started_again_on_failure():
        raise UsageError(
            "torchrun starts this program again when it fails, for a release of its own each time: leave out "
            "--max-restarts"
        )
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # as multiprocessing itself finds it out
        raise UsageError(
            "this program is being imported by a process that decodes images for it, and would make the release again: "
            'call make_release below if __name__ == "__main__"'
        )


def _require_usual_settings(request: ReleaseRequest) -> None:
    """Refuse what the program has set that would change what is read or released, or cannot work."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise UsageError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, which takes half an image for a whole: unset it")
    if torch.get_default_dtype() != torch.float32:
        raise UsageError(f"torch's default type is {torch.get_default_dtype()}, and features are float32: set it back")
    if multiprocessing.current_process().daemon and request.workers != 0:
        raise UsageError("this process is daemonic and may start no others: decode images in it with workers=0")


def _make_release(
    request: ReleaseRequest, processes: Processes | None, tell: ReleaseCallbacks, stage: Stage
) -> Artifact | None:
    """The release itself; `stage` is told how far it has come."""
    first = processes is None or processes.first
    settings = request.settings(processes)
    if weak := weakness(settings.epsilon, settings.delta):
        tell.warn(weak)
    if first:
        check_output(request, settings.register)
    checkpoint = _checkpoint(request, settings.register, processes, tell)
    stage.register, stage.checkpoint = settings.register, checkpoint
    signing_key = None
    if request.sign_key is not None and first:
        check_signature_target(request.output, force=request.force)
        signing_key = load_signing_key(request.sign_key, ask_passphrase=tell.ask_passphrase)
    # The encoder is checked before the data: until the schema is known at the largest size, which most can take.
    description = described(request, resolution=max(SUPPORTED_RESOLUTIONS), say=tell.say)
    source = request.open()
    persons = persons_of(request, source)
    keep_freed_memory()
    schema = infer_schema(
        source,
        resolution=request.resolution,
        channels=request.channels,
        strict=request.strict,
        workers=request.workers,
    )
    description = dataclasses.replace(description, resolution=schema.resolution, channels=schema.channels)
    feature_map = build_feature_map(description, weights_file=request.encoder_weights, device=settings.device)
    plan(schema, feature_map, settings)
    if processes is not None and not processes.first:
        embed_share(
            source,
            schema=schema,
            feature_map=feature_map,
            settings=settings,
            persons=persons,
            processes=processes,
            checkpoint=checkpoint,
        )
        if checkpoint is not None and (left := checkpoint.delete()):
            tell.warn_from_any_process(left)
        return None
    tell.on_schema(source, schema)
    if isinstance(source, EncodedImageSource) and source.levels_above is not None:
        endings = ", ".join(sorted(EXTENSIONS))
        tell.say(f"images are the files that end in {endings}; others, and hidden ones, are passed over.")
    if schema.inferred:
        tell.warn(
            f"{', '.join(schema.inferred)} inferred from the data and treated as public; declare what must not be "
            "(--strict insists)"
        )
    images = len(source) // (1 if processes is None else processes.count)  # this process's, or nearly so
    with tell.progress(images, len(schema.classes) * (feature_map.dimension + 1)) as (on_images, on_noise):
        stage.artifact = artifact = embed_images(
            source,
            schema=schema,
            feature_map=feature_map,
            settings=settings,
            persons=persons,
            processes=processes,
            checkpoint=checkpoint,
            on_images=on_images,
            on_charge=stage.charge,
            on_noise=on_noise,
        )
    write_artifact(stage.file, artifact, force=request.force)
    if signing_key is not None:
        sign_file(stage.file, signing_key, force=request.force)
    elif request.force:
        remove_old_signature(stage.file)
    if checkpoint is not None and (left := checkpoint.delete()):
        tell.warn(left)
    if settings.register is None:
        tell.warn("this release is in no register: releases of the same images add up (--dataset NAME keeps count)")
    if request.skip_unreadable:  # the same words whether there were any: that is private
        tell.warn("images that cannot be decoded are left out; --list-unreadable FILE says which")
    tell.on_release(artifact, settings.register)
    return artifact


def described(
    request: ReleaseRequest, *, resolution: int = ASSUMED_RESOLUTION, say: Callable[[str], None]
) -> FeatureMapDescription:
    """The feature map of a request, of `resolution` and in colour where that says nothing of these."""
    description = describe_feature_map(
        preset=request.features,
        encoder=request.encoder,
        resolution=request.resolution or resolution,
        channels=request.channels or ASSUMED_CHANNELS,
        weights_file=request.encoder_weights,
    )
    if request.features == "dp-mepf" and request.encoder != "vgg19":
        say("--features dp-mepf is the paper's feature map with --encoder vgg19 alone, not with this one.")
    return description


def persons_of(request: ReleaseRequest, source: ImageSource) -> npt.NDArray[np.int64] | None:
    """Whose each image of `source` is, if the release is to protect persons."""
    if request.unit_list is not None:
        return persons_from_list(source, request.unit_list)
    return persons_from_folders(source) if request.unit_from_folder else None


def _checkpoint(
    request: ReleaseRequest, register: Register | None, processes: Processes | None, tell: ReleaseCallbacks
) -> Checkpoint | None:
    if request.checkpoint is None:
        return None
    taken: list[Path] = [request.output, signature_file(request.output)]
    taken += [] if register is None else files_of(register.path)
    return place_checkpoint(
        request.checkpoint.absolute(),
        processes,
        data=request.data,
        taken=taken,
        say=tell.say,
        warn=tell.warn_from_any_process,
    )
