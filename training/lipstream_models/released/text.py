"""The prompt embedding, computed once by UMT5-XXL: writing it, and reading each form that upstream scripts accept."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import torch
from lipstream.atomic import write_file
from lipstream.errors import CheckpointError, OutputError
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from .files import identify, open_weights
from .umt5 import load_umt5

PROMPT = "a person talking"
"""The default of the upstream scripts."""
ROWS = 512
_KEYS = ("context", "text_emb", "prompt_emb")


def load_text(path: Path, rows: int, width: int) -> Tensor:
    """The prompt embedding of a file, float32 [rows, width].

    The file holds the tensor, or a dict with it under `context`, `text_emb` or `prompt_emb`, else as its first tensor.
    Fewer rows than `rows` are filled up with zeros, as the upstream encoder does.

    Raises:
        CheckpointError: as `open_weights`, or not an embedding of that width.
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


def embed(source: Path, prompt: str, *, tokenizer: Path | None = None, rows: int = ROWS) -> Tensor:
    """The embedding of `prompt`, float32 [1, rows, width], by a UMT5 encoder: see `load_umt5`.

    The prompt is cleaned as the upstream encoder does; rows beyond its tokens are zero.

    Raises:
        CheckpointError: `source` is no UMT5 encoder, or has no tokenizer.
    """
    import ftfy

    text = re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()
    encoder, tokenize = load_umt5(source, tokenizer)
    given = tokenize(text, padding="max_length", truncation=True, max_length=rows, return_tensors="pt")
    mask = given["attention_mask"]
    with torch.inference_mode():
        hidden: Tensor = encoder(given["input_ids"], attention_mask=mask).last_hidden_state
    embedding: Tensor = hidden.float() * mask[..., None]
    return embedding


def write_text(source: Path, prompt: str, out: Path, *, tokenizer: Path | None = None) -> dict[str, Any]:
    """Write the embedding of `prompt` to `out`, a .safetensors file; returns a description for JSON.

    Raises:
        CheckpointError: as `embed`.
        OutputError: `out` cannot be written.
    """
    embedding = embed(source, prompt, tokenizer=tokenizer)
    try:
        write_file(out, save({"context": embedding}, {"prompt": prompt}))
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror}", fix="choose another place") from error
    return {"output": str(out), "prompt": prompt, "shape": list(embedding.shape)}
