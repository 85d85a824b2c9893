"""The prompt's embedding, computed once by UMT5-XXL: as a file, in every shape that the released scripts take."""

from __future__ import annotations

from pathlib import Path

from lipstream.errors import CheckpointError
from torch import Tensor
from torch.nn import functional as F

from .files import identify, open_weights

_KEYS = ("context", "text_emb", "prompt_emb")


def load_text(path: Path, rows: int, width: int) -> Tensor:
    """float32 [rows, width] of a file: a tensor, or a dict with it under `context`, `text_emb`, `prompt_emb`, or first.

    Fewer rows than `rows` are filled up with zeros, as the released encoder does.

    Raises:
        CheckpointError: of `open_weights`, or not an embedding of that width.
    """
    found = open_weights(path)
    name = next((key for key in _KEYS if key in found), next(iter(found)))
    text = found[name]
    if text.ndim == 3 and text.shape[0] == 1:
        text = text[0]
    if text.ndim != 2 or text.shape[1] != width or text.shape[0] > rows:
        raise CheckpointError(
            f"{path} looks like: {identify(found)}; {name or 'its tensor'} is {list(text.shape)}",
            expected=f"a text embedding [1, {rows}, {width}]",
        )
    return F.pad(text.float(), (0, 0, 0, rows - text.shape[0]))
