"""The UMT5 encoder and its tokenizer: a Hugging Face folder, or upstream's single file beside a tokenizer's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lipstream.errors import CheckpointError

from .files import open_weights, renamed, require_shapes

if TYPE_CHECKING:
    from transformers import UMT5EncoderModel

_NAMES = (
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.", r"encoder.block.\1."),
    (r"\.attn\.", ".layer.0.SelfAttention."),
    (r"\.pos_embedding\.embedding\.", ".layer.0.SelfAttention.relative_attention_bias."),
    (r"\.norm1\.", ".layer.0.layer_norm."),
    (r"\.norm2\.", ".layer.1.layer_norm."),
    (r"\.ffn\.gate\.0\.", ".layer.1.DenseReluDense.wi_0."),
    (r"\.ffn\.fc1\.", ".layer.1.DenseReluDense.wi_1."),
    (r"\.ffn\.fc2\.", ".layer.1.DenseReluDense.wo."),
)
"""Upstream's names (``models_t5_umt5-xxl-enc-bf16.pth``), and those of transformers."""


def load_umt5(source: Path, tokenizer: Path | None = None) -> tuple[UMT5EncoderModel, Any]:
    """The encoder, its weights in the type they are stored in, and the tokenizer. Nothing is downloaded.

    Args:
        source: a Hugging Face folder, or upstream's file. tokenizer: folder; by default `source`.

    Raises:
        CheckpointError: not a UMT5 encoder, or no tokenizer.
    """
    from transformers import AutoTokenizer

    folder = tokenizer or source
    if not folder.is_dir():
        raise CheckpointError(
            f"{source} has no tokenizer",
            expected="the folder of google/umt5-xxl's tokenizer beside it",
            fix=f"lipstream text-embed {source} --tokenizer FOLDER -o OUT",
        )
    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} holds no tokenizer: {error}", expected="that of google/umt5-xxl", fix="copy its folder"
        ) from error
    return (_of_folder(source) if source.is_dir() else _of_file(source)), loaded


def _of_folder(folder: Path) -> UMT5EncoderModel:
    from transformers import UMT5EncoderModel

    encoder: Any = UMT5EncoderModel
    try:
        model: UMT5EncoderModel = encoder.from_pretrained(folder, local_files_only=True, dtype="auto").eval()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} is no UMT5 encoder: {error}", expected="a Hugging Face folder with config.json and the weights"
        ) from error
    return model


def _of_file(path: Path) -> UMT5EncoderModel:
    """The encoder of upstream's file, its weights memory-mapped."""
    from transformers import UMT5Config, UMT5EncoderModel

    weights = open_weights(path)
    if "token_embedding.weight" in weights:
        weights = renamed(weights, _NAMES)
    try:
        vocabulary, width = weights["shared.weight"].shape
        attention = "encoder.block.0.layer.0.SelfAttention."
        buckets, heads = weights[f"{attention}relative_attention_bias.weight"].shape
        inner = weights[f"{attention}q.weight"].shape[0]
        hidden = weights["encoder.block.0.layer.1.DenseReluDense.wo.weight"].shape[1]
    except (KeyError, ValueError):
        require_shapes(path, weights, {"shared.weight": torch.empty(0)}, "the UMT5 encoder")
        raise
    layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.block."))
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=inner // heads,
        d_ff=hidden,
        num_layers=layers,
        num_heads=heads,
        relative_attention_num_buckets=buckets,
    )
    with torch.device("meta"):
        encoder: Any = UMT5EncoderModel
        model: Any = encoder(config)
    weights.setdefault("encoder.embed_tokens.weight", weights["shared.weight"])
    require_shapes(path, weights, model.state_dict(), "the UMT5 encoder")
    model.load_state_dict(weights, assign=True)
    loaded: UMT5EncoderModel = model.eval()
    return loaded
