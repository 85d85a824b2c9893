"""A bundle with the Wan VAE, or with one half of it: other graphs under the same names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exported import Exported
from lipstream.backends.onnxruntime import OnnxRuntimeBackend
from lipstream.bundle import Bundle
from lipstream_export.bundle import export_bundle
from lipstream_export.parity import parity_report, require_parity
from lipstream_export.precision import to_bfloat16
from lipstream_export.source import load_source
from lipstream_export.video import VideoEncoder
from lipstream_models import TAEHV, WanVAE, WanVAEConfig
from lipstream_models.parts import StudentParts
from toys import CONFIG, TAEHV_CONFIG, randomise, toy_taehv

CHANNELS = CONFIG.latent_channels
SIZES = replace(CONFIG, spatial=8)


def video_parts(encoder: str, decoder: str) -> StudentParts:
    torch.manual_seed(0)
    wan = WanVAE(WanVAEConfig(dim=4, latent_channels=CHANNELS)).eval().requires_grad_(False)
    randomise(wan)
    masks = {"pixel": torch.ones(SIZES.crop_size)}
    masks["pixel"][SIZES.crop_size[0] // 2 :] = 0
    return StudentParts(SIZES, taehv=toy_taehv(TAEHV_CONFIG), wan=wan, encoder=encoder, decoder=decoder, masks=masks)


@pytest.fixture(scope="module", params=[("wan", "taehv"), ("taehv", "wan")], ids="-".join)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    parts = video_parts(*request.param)
    return Exported(parts, export_bundle(parts, tmp_path_factory.mktemp("wan") / "bundle"))


def test_onnx_runtime_agrees_with_pytorch(exported: Exported) -> None:
    report = parity_report(exported.parts, exported.bundle)
    require_parity(report)
    assert {*report["graphs"]} == {"video_encoder", "video_decoder"}


@pytest.mark.parametrize(
    ("kept", "shared"), [(32, 32), (31, 31), (16, 16), (0, 0), (-1, 5)], ids=["all", "31", "16", "none", "soft"]
)
@pytest.mark.parametrize("pieces", [1, 3])
def test_rows_above_the_mask_are_encoded_once(
    monkeypatch: pytest.MonkeyPatch, kept: int, shared: int, pieces: int
) -> None:
    """Three chunks, bit for bit against both encodings in full."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)  # its sums depend on batch and height
    height, width = SIZES.crop_size
    mask = torch.ones(height, width)
    if kept >= 0:
        mask[kept:, 3:-5] = 0
    else:
        mask[5, 7] = 0.5
    codec = video_parts("wan", "wan").wan
    assert codec
    whole = VideoEncoder(codec, 12, SIZES.crop_size, pieces)
    once = VideoEncoder(codec, 12, SIZES.crop_size, pieces, mask)
    assert once.shared == shared
    memories = whole.memory(), once.memory()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        # Numbers that the mask's arithmetic, (x - 0.5) * 1 + 0.5, does not round.
        frames = torch.randint(0, 257, (12, 3, height, width), generator=generator) / 256
        results = [module(frames, mask, *memory) for module, memory in zip((whole, once), memories, strict=True)]
        assert torch.equal(results[0][0], results[1][0])
        memories = [list(memory) for _, *memory in results]


def test_the_graph_computes_shared_rows_once(exported: Exported) -> None:
    """Memories of the masked frames lack rows, only in a Wan encoder."""
    header = onnx.load(exported.bundle.path / "video_encoder.onnx", load_external_data=False)
    shapes = {x.name: [d.dim_value for d in x.type.tensor_type.shape.dim] for x in header.graph.input}
    heights = {shape[3] for name, shape in shapes.items() if name.startswith("memory.") and len(shape) == 5}
    wanted = {32, 28, 16, 8, 4} if exported.parts.encoder == "wan" else set()
    assert heights == wanted


def test_pytorch_finds_its_weights_in_the_bundle(exported: Exported) -> None:
    parts = load_source(exported.bundle.path)
    assert (parts.encoder, parts.decoder) == (exported.parts.encoder, exported.parts.decoder)
    require_parity(parity_report(parts, exported.bundle))


def test_the_unused_half_is_not_stored(exported: Exported, tmp_path: Path) -> None:
    names = {*exported.parts.weights()}
    for half in ("encoder", "decoder"):
        for codec in ("taehv", "wan"):
            used = getattr(exported.parts, half) == codec
            assert any(name.startswith(f"{codec}.{half}.") for name in names) == used


def test_each_half_has_its_codec() -> None:
    parts = video_parts("wan", "wan")
    codec = parts.codec("encoder")
    assert isinstance(codec, WanVAE)
    assert isinstance(replace(parts, encoder="taehv").codec("encoder"), TAEHV)


def test_export_in_bfloat16(exported: Exported, tmp_path: Path) -> None:
    rounded = to_bfloat16(exported.parts)
    bundle = export_bundle(rounded, tmp_path / "bf16", precision="bf16")
    assert Bundle.load(bundle.path).manifest.precision == "bf16"


def test_streams_do_not_share_memories(exported: Exported) -> None:
    backend = OnnxRuntimeBackend(exported.bundle)
    frames = np.random.default_rng(0).random((12, 3, *SIZES.crop_size), np.float32)
    first, second = backend.open_steps(), backend.open_steps()
    before = first.encode_video(frames)
    first.encode_video(frames)
    np.testing.assert_array_equal(second.encode_video(frames), before)
