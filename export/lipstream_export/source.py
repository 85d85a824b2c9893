"""The sources of `lipstream export`: a checkpoint, a float32 bundle, or a set of published files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lipstream.bundle import MANIFEST, Bundle
from lipstream.errors import BundleNotFoundError, CheckpointError
from lipstream_models.parts import DESCRIPTION, StudentParts
from lipstream_models.released.release import Release


def load_source(
    source: Path | Release | StudentParts, progress: Callable[[str], None] = lambda name: None
) -> StudentParts:
    """The parts of a student.

    Args:
        source: a checkpoint folder, a bundle's folder, a shipped bundle's name, published files, or parts as they are.
        progress: called with the name of what is loaded next of published files.

    Raises:
        CheckpointError: a checkpoint or published files are invalid. BackendError: the bundle is not float32. And those
            of `Bundle.load`.
    """
    if isinstance(source, StudentParts):
        return source
    if isinstance(source, Release):
        return StudentParts.from_release(source, progress)
    if (source / DESCRIPTION).is_file():
        return StudentParts.from_checkpoint(source)
    try:
        found = Bundle.find(source)
    except BundleNotFoundError as error:
        raise CheckpointError(
            f"{source} is not a checkpoint",
            expected=f"a folder with {DESCRIPTION}, written by lipstream-train, or with {MANIFEST}, a bundle",
        ) from error
    return StudentParts.from_bundle(Bundle.load(found))
