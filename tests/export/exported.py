"""A toy student and the bundle that was exported from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lipstream.bundle import Bundle
from lipstream_export.bundle import export_bundle
from lipstream_models import StudentConfig
from lipstream_models.parts import StudentParts
from toys import CONFIG, toy_parts, toy_student, toy_text


@dataclass(frozen=True)
class Exported:
    parts: StudentParts
    bundle: Bundle

    @property
    def config(self) -> StudentConfig:
        return self.parts.config


def export_complete(path: Path) -> Exported:
    """All graphs, the window of the published students."""
    parts = toy_parts(CONFIG)
    return Exported(parts, export_bundle(parts, path))


def export_student(path: Path, window: int, sink: int) -> Exported:
    """The denoiser alone."""
    config = replace(CONFIG, num_layers=2, window=window, sink=sink)
    parts = StudentParts(config, toy_student(config), toy_text(config))
    return Exported(parts, export_bundle(parts, path))
