"""A trained student on disk: what `lipstream export` takes.

A folder: `checkpoint.json` (sizes and a description), `student.safetensors`, `taehv.safetensors`, `speech.safetensors`
and `extras.safetensors` with the prompt embedding `text` and the masks `mask.pixel`, `mask.latent`, `mask.composite`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import TAEHV, CausalDiT, SpeechEncoder, StudentConfig, TAEHVConfig

DESCRIPTION = "checkpoint.json"


@dataclass
class Checkpoint:
    """Everything that makes up a student.

    Attributes:
        text: prompt embedding [text_len, text_dim].
        masks: `pixel` [H, W] and `latent` [h, w], 1 = keep; `composite` [H, W], 1 = show the source, soft.
        model: name, description, licence: for the manifest of its bundle.
    """

    student: CausalDiT
    taehv: TAEHV
    speech: SpeechEncoder
    text: Tensor
    masks: dict[str, Tensor]
    model: dict[str, Any]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        extras = {"text": self.text} | {f"mask.{name}": mask for name, mask in self.masks.items()}
        save_file(_contiguous(self.student.state_dict()), folder / "student.safetensors")
        save_file(_contiguous(self.taehv.state_dict()), folder / "taehv.safetensors")
        save_file(_contiguous(self.speech.state_dict()), folder / "speech.safetensors")
        save_file(_contiguous(extras), folder / "extras.safetensors")
        sizes = {"student": asdict(self.student.config), "taehv": asdict(self.taehv.config), "model": self.model}
        (folder / DESCRIPTION).write_text(json.dumps(sizes, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: a file is missing. RuntimeError: weights do not fit the sizes.
        """
        sizes = json.loads((folder / DESCRIPTION).read_text())
        student = CausalDiT(StudentConfig(**_tuples(sizes["student"])))
        student.load_state_dict(load_file(folder / "student.safetensors"))
        taehv = TAEHV(TAEHVConfig(**_tuples(sizes["taehv"])))
        taehv.load_state_dict(load_file(folder / "taehv.safetensors"))
        speech = SpeechEncoder()
        speech.load_state_dict(load_file(folder / "speech.safetensors"))
        extras = load_file(folder / "extras.safetensors")
        masks = {name.removeprefix("mask."): x for name, x in extras.items() if name.startswith("mask.")}
        return cls(student.eval(), taehv.eval(), speech.eval(), extras["text"], masks, sizes["model"])


@torch.no_grad()
def round_to_bfloat16(module: torch.nn.Module) -> None:
    """Round the weights to values that bfloat16 holds exactly, as the released ones are; halves the bundle."""
    for parameter in module.parameters():
        parameter.copy_(parameter.bfloat16())


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.detach().contiguous() for name, x in tensors.items()}


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
