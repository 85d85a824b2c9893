"""What `lipstream export` takes: a folder that training left, or a float32 bundle that was exported from one."""

from __future__ import annotations

import textwrap
from pathlib import Path

from lipstream.bundle import MANIFEST, Bundle
from lipstream.errors import BundleNotFoundError, CheckpointError
from lipstream_models import StudentConfig
from lipstream_models.checkpoint import DESCRIPTION, Checkpoint
from lipstream_models.speech import WIDTHS
from safetensors import SafetensorError
from torch import Tensor

from .bundle import Parts
from .torch_backend import TorchBackend

RETRAIN = "copy the folder again, or train it again: lipstream-train --help"


def load_source(source: Path) -> tuple[Parts, StudentConfig]:
    """The parts of a student, in float32, from a checkpoint folder, a bundle's folder, or a shipped bundle's name.

    Raises:
        CheckpointError: of a checkpoint. BackendError: of a bundle that is not float32. And those of `Bundle.load`.
    """
    if not (source / DESCRIPTION).is_file():
        try:
            found = Bundle.find(source)
        except BundleNotFoundError as error:
            raise CheckpointError(
                f"{source} is not a checkpoint",
                expected=f"a folder with {DESCRIPTION}, as lipstream-train leaves it, or with {MANIFEST}, a bundle",
            ) from error
        return parts_of_bundle(Bundle.load(found))
    checkpoint = load_checkpoint(source)
    parts = Parts(
        checkpoint.student, checkpoint.text, checkpoint.taehv, checkpoint.speech, checkpoint.masks, checkpoint.model
    )
    return parts, checkpoint.student.config


def parts_of_bundle(bundle: Bundle) -> tuple[Parts, StudentConfig]:
    """The parts of a float32 bundle; what acts through its constants alone is there as these."""
    backend = TorchBackend(bundle)
    return backend.parts, backend.config


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint folder, and see that everything in it has the shape that its sizes ask for.

    Raises:
        CheckpointError: a file is missing, unreadable or does not fit the others.
    """
    if not (folder / DESCRIPTION).is_file():
        raise CheckpointError(
            f"{folder} is not a checkpoint", expected=f"a folder with {DESCRIPTION}, as lipstream-train leaves it"
        )
    try:
        checkpoint = Checkpoint.load(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise CheckpointError(f"{folder} does not load: {reason}", fix=RETRAIN) from error
    config, taehv = checkpoint.student.config, checkpoint.taehv.config
    if config.latent_channels != taehv.latent_channels:
        raise CheckpointError(
            f"{folder}: the student has {config.latent_channels} latent channels, the TAEHV {taehv.latent_channels}",
            expected="models that were trained together",
        )
    if config.spatial != taehv.spatial:
        raise CheckpointError(
            f"{folder}: the student's latents are {config.spatial} times smaller, the TAEHV's {taehv.spatial}",
            expected="models that were trained together",
        )
    if config.audio_dim != WIDTHS[-1]:
        raise CheckpointError(
            f"{folder}: the student hears {config.audio_dim} features, its speech encoder gives {WIDTHS[-1]}",
            expected="models that were trained together",
        )
    wanted = {"text": (config.text_len, config.text_dim), "mask.latent": config.latent_size}
    wanted |= {f"mask.{name}": config.crop_size for name in ("pixel", "composite")}
    extras = {"text": checkpoint.text, **{f"mask.{name}": mask for name, mask in checkpoint.masks.items()}}
    for name, shape in wanted.items():
        found = tuple(extras[name].shape) if name in extras else "missing"
        if found != shape:
            raise CheckpointError(f"{name} of {folder} is {found}", expected=str(shape), fix=RETRAIN)
    parts = checkpoint.student, checkpoint.taehv, checkpoint.speech
    tensors: dict[str, Tensor] = {name: x for part in parts for name, x in part.state_dict().items()} | extras
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"{name} of {folder} holds values that are not finite", fix=RETRAIN)
    return checkpoint
