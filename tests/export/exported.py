"""A toy student beside the bundle that was exported from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lipstream.bundle import Bundle
from lipstream_export.bundle import Parts, export_bundle
from lipstream_models import StudentConfig
from toys import CONFIG, toy_checkpoint, toy_student, toy_text


@dataclass(frozen=True)
class Exported:
    parts: Parts
    config: StudentConfig
    bundle: Bundle


def export_complete(path: Path) -> Exported:
    """All graphs, the released window."""
    checkpoint = toy_checkpoint(CONFIG)
    parts = Parts(
        checkpoint.student, checkpoint.text, checkpoint.taehv, checkpoint.speech, checkpoint.masks, checkpoint.model
    )
    return Exported(parts, checkpoint.student.config, export_bundle(parts, checkpoint.student.config, path))


def export_student(path: Path, window: int, sink: int) -> Exported:
    """The denoiser and context graphs alone."""
    config = replace(CONFIG, num_layers=2, window=window, sink=sink)
    parts = Parts(toy_student(config), toy_text(config))
    return Exported(parts, config, export_bundle(parts, config, path))
