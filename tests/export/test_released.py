"""Files in the formats of the released system, at toy widths: loaded, exported, run; and wrong files."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import soxr
import torch
from lipstream import LipSyncEngine, samples
from lipstream.backends.base import Array
from lipstream.bundle import Bundle
from lipstream.cli import main
from lipstream.errors import CheckpointError
from lipstream.face import FaceOptions
from lipstream.media.audio import to_int16
from lipstream_export.command import export
from lipstream_export.torch_backend import TorchBackend
from lipstream_models import STUDENTS, TAEHV, CausalDiT, TAEHVConfig, WanVAE, WanVAEConfig
from lipstream_models.parts import StudentParts
from lipstream_models.released import describe, load_student, load_taehv, load_wan_vae, open_weights
from lipstream_models.released.release import Release
from lipstream_models.released.student import LORA_SCALE, load_unmerged
from lipstream_models.released.text import embed, load_text
from lipstream_models.released.wav2vec import LiveWav2Vec
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import checkpoint
from torch.nn import functional as F
from toys import RELEASED, WAV2VEC_SIZES, randomise

TOY = replace(RELEASED, latent_size=(4, 4))
Weights = dict[str, Tensor]


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDENTS, "toy", TOY)


def student_weights(seed: int = 0) -> Weights:
    torch.manual_seed(seed)
    model = CausalDiT(TOY)
    randomise(model, seed)
    return {name: x.detach().bfloat16() for name, x in model.state_dict().items()}


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def same(student: CausalDiT, weights: Weights) -> None:
    found = student.state_dict()
    assert {*found} == {*weights}
    for name, x in weights.items():
        torch.testing.assert_close(found[name].float(), x.float(), rtol=0, atol=0)


def test_every_wrapping_of_a_merged_student(tmp_path: Path) -> None:
    weights = student_weights()
    core = {f"_core.{name}": x for name, x in weights.items()}
    save_file(weights, tmp_path / "flat.safetensors")
    files = [
        save(tmp_path / "flat.pth", weights),
        save(tmp_path / "net.pth", {"net": core, "iteration": 3}),
        save(tmp_path / "model.pth", {"model": {"net": core, "fake_score": {}}, "optimizer": {}}),
        save(tmp_path / "prefixed.pth", {f"model.{name}": x for name, x in weights.items()}),
        tmp_path / "flat.safetensors",
    ]
    for path in files:
        student = load_student([path], "toy")
        same(student, weights)
        assert student.blocks[0].ffn[0].weight.dtype == torch.bfloat16
        assert student.blocks[0].modulation.dtype == torch.float32


def test_product_weights_are_memory_mapped(tmp_path: Path) -> None:
    """The student's weights are in the mapped file's memory, not a copy of it."""
    path = save(tmp_path / "flat.pth", student_weights())
    student = load_student([path], "toy")
    address = student.blocks[1].ffn[0].weight.data_ptr()
    ranges = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    spans = [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in ranges]
    assert any(start <= address < end for start, end in spans)


def split(weights: Weights) -> tuple[Weights, Weights]:
    """A base model of 16 input channels, and what training adds."""
    own = ("audio_proj.", "audio_cond_projs.", "patch_embedding.")
    base = {name: x for name, x in weights.items() if not name.startswith(own)}
    base["patch_embedding.weight"] = weights["patch_embedding.weight"][:, :16].clone() * 2
    base["patch_embedding.bias"] = weights["patch_embedding.bias"] * 2
    return base, {name: x for name, x in weights.items() if name.startswith(own)}


@pytest.mark.parametrize("style", ["training", "adapter"])
def test_lora_on_a_base_model(style: str, tmp_path: Path) -> None:
    weights = student_weights()
    base, added = split(weights)
    generator = torch.Generator().manual_seed(1)
    merged = dict(weights)
    for layer in ("blocks.0.self_attn.q", "blocks.3.cross_attn.o", "blocks.2.ffn.0", "blocks.1.ffn.2"):
        out, into = weights[f"{layer}.weight"].shape
        a = torch.randn(4, into, generator=generator).bfloat16()
        b = torch.randn(out, 4, generator=generator).bfloat16()
        merged[f"{layer}.weight"] = weights[f"{layer}.weight"] + LORA_SCALE * (b @ a)
        middle = ".default" if style == "training" else ""
        added |= {f"{layer}.lora_A{middle}.weight": a, f"{layer}.lora_B{middle}.weight": b}
    if style == "training":
        added = {f"_core.{name}": x for name, x in added.items()}
    student = load_student([save(tmp_path / "base.pth", base), save(tmp_path / "delta.pth", added)], "toy")
    same(student, merged)
    exact = weights["blocks.2.ffn.0.weight"].double()
    change = student.state_dict()["blocks.2.ffn.0.weight"].double() - exact
    assert float(change.norm() / exact.norm()) > 0.1


def test_a_base_model_without_audio_gets_layers_that_add_nothing_yet(tmp_path: Path) -> None:
    base, added = split(student_weights())
    path = save(tmp_path / "base.pth", base | {n: x for n, x in added.items() if n.startswith("patch_embedding.")})
    with pytest.raises(CheckpointError, match=r"missing: audio_proj\.proj\.weight"):
        load_student([path], "toy")
    student = load_student([path], "toy", new_audio=True).float()
    assert student.audio_proj.proj.weight.any()
    features = torch.randn(1, 12, TOY.audio_dim)
    assert not any(x.any() for x in student.audio(features).values())
    trained, _ = load_unmerged([save(tmp_path / "whole.pth", student_weights())], "toy", new_audio=True)
    same(trained, student_weights())


def lora(seed: int, layers: dict[str, int], middle: str) -> tuple[Weights, dict[str, tuple[Tensor, Tensor]]]:
    """A file's tensors, and A and B by layer; `layers`: the rank of each."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for layer, rank in layers.items():
        out, into = student_weights()[f"{layer}.weight"].shape
        a = torch.randn(rank, into, generator=generator).bfloat16()
        pairs[layer] = a, torch.randn(out, rank, generator=generator).bfloat16()
    file = {f"{n}.lora_{x}{middle}.weight": t for n, pair in pairs.items() for x, t in zip("AB", pair, strict=True)}
    return file, pairs


def test_a_training_delta_replaces_the_adapter_that_it_continues(tmp_path: Path) -> None:
    """Layer by layer: A and B of the last file that has them, merged once."""
    weights = student_weights()
    base, own = split(weights)
    first, pairs = lora(1, {"blocks.0.self_attn.q": 4, "blocks.2.ffn.0": 4}, "")
    delta, later = lora(2, {"blocks.0.self_attn.q": 3, "blocks.1.ffn.2": 4}, ".default")
    paths = [save(tmp_path / "base.pth", base), save(tmp_path / "adapter.pth", first | own)]
    paths.append(save(tmp_path / "delta.pth", {f"_core.{name}": x for name, x in delta.items()}))
    merged = dict(weights)
    for layer, (a, b) in {**pairs, **later}.items():
        merged[f"{layer}.weight"] = weights[f"{layer}.weight"] + 0.5 * (b @ a)
    same(load_student(paths, "toy"), merged)
    student, adapters = load_unmerged(paths, "toy")
    same(student, weights)
    assert {layer: a.shape[0] for layer, (a, _) in adapters.items()} == {
        "blocks.0.self_attn.q": 3,
        "blocks.2.ffn.0": 4,
        "blocks.1.ffn.2": 4,
    }
    assert all(torch.equal(x, y) for n, pair in later.items() for x, y in zip(adapters[n], pair, strict=True))
    same(load_student([*paths, save(tmp_path / "merged.pth", weights)], "toy"), weights)


def test_a_second_adapter_is_refused(tmp_path: Path) -> None:
    base, own = split(student_weights())
    paths = [save(tmp_path / "base.pth", base | own)]
    for seed in (1, 2):
        paths.append(save(tmp_path / f"{seed}.pth", lora(seed, {"blocks.2.ffn.0": 4}, "")[0]))
    with pytest.raises(CheckpointError, match=r"2\.pth is a second adapter for blocks\.2\.ffn\.0"):
        load_student(paths, "toy")
    load_student(paths[:2], "toy")


def test_a_base_model_in_diffusers_naming(tmp_path: Path) -> None:
    """Saved by diffusers itself; norm2 there is our norm3."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    theirs = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=TOY.num_heads,
        attention_head_dim=TOY.head_dim,
        in_channels=16,
        out_channels=16,
        text_dim=TOY.text_dim,
        freq_dim=256,
        ffn_dim=TOY.ffn_dim,
        num_layers=TOY.num_layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    randomise(theirs)
    save_file({name: x.contiguous() for name, x in theirs.state_dict().items()}, tmp_path / "base.safetensors")
    _, added = split(student_weights())
    del added["patch_embedding.weight"], added["patch_embedding.bias"]
    student = load_student([tmp_path / "base.safetensors", save(tmp_path / "audio.pth", added)], "toy")
    found, state = student.state_dict(), theirs.state_dict()
    pairs = {
        "blocks.1.norm3.weight": "blocks.1.norm2.weight",
        "blocks.2.self_attn.o.weight": "blocks.2.attn1.to_out.0.weight",
        "blocks.0.cross_attn.norm_k.weight": "blocks.0.attn2.norm_k.weight",
        "blocks.3.ffn.2.bias": "blocks.3.ffn.net.2.bias",
        "blocks.3.modulation": "blocks.3.scale_shift_table",
        "head.modulation": "scale_shift_table",
        "time_projection.1.weight": "condition_embedder.time_proj.weight",
    }
    for ours, name in pairs.items():
        torch.testing.assert_close(found[ours].float(), state[name].to(found[ours].dtype).float(), rtol=0, atol=0)
    patch = found["patch_embedding.weight"].float()
    assert torch.equal(patch[:, :16], state["patch_embedding.weight"].bfloat16().float())
    assert not patch[:, 16:].any()


def test_the_wan_vae_in_all_its_wrappings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = WanVAE(WanVAEConfig(dim=4))
    weights = {name: x.contiguous() for name, x in model.state_dict().items()}
    for path in (
        save(tmp_path / "a.pth", weights),
        save(tmp_path / "b.pth", {f"model.{name}": x for name, x in weights.items()}),
        save(tmp_path / "c.pth", {"model_state": weights}),
    ):
        found = load_wan_vae(path)
        assert found.config == model.config
        assert all(torch.equal(x, weights[name]) for name, x in found.state_dict().items())


def test_taehv_of_a_larger_stride_keeps_its_last_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = TAEHV(TAEHVConfig()).state_dict()
    large = dict(weights)
    large["decoder.7.conv.weight"] = torch.cat([torch.ones(256, 256, 1, 1), weights["decoder.7.conv.weight"]])
    for content in (weights, large):
        found = load_taehv(save(tmp_path / "t.pth", content)).state_dict()
        assert all(torch.equal(x, weights[name]) for name, x in found.items())


@pytest.mark.parametrize("shape", ["bare", "context", "text_emb", "prompt_emb", "first", "two axes", "short"])
def test_every_shape_of_a_text_embedding(shape: str, tmp_path: Path) -> None:
    text = torch.randn(1, 4, 8).bfloat16()
    contents: dict[str, Any] = {"bare": text, "two axes": text[0], "short": text[:, :2], "first": {"anything": text}}
    content = contents.get(shape, {"other": torch.zeros(1), shape: text})
    found = load_text(save(tmp_path / "t.pt", content), 4, 8)
    expected = text[0].float() if shape != "short" else torch.cat([text[0, :2].float(), torch.zeros(2, 8)])
    assert torch.equal(found, expected)
    with pytest.raises(CheckpointError, match="looks like"):
        load_text(save(tmp_path / "u.pt", torch.zeros(1, 4, 9)), 4, 8)


def umt5(folder: Path) -> Any:
    """A small UMT5 encoder and a tokenizer of whole words, saved by transformers and tokenizers."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    words = Tokenizer(
        models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "person": 4, "talking": 5, "&": 6}, "<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=7, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    model = UMT5EncoderModel(config).eval()
    model.save_pretrained(folder)
    return model


def test_a_prompt_is_embedded_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The embedding is that of transformers' encoder; the prompt is cleaned; rows after its tokens are zero."""
    model = umt5(tmp_path / "umt5")
    out = tmp_path / "prompt.safetensors"
    command = [
        "text-embed",
        str(tmp_path / "umt5"),
        "-o",
        str(out),
        "--prompt",
        "a  person &amp;amp; talking",
        "--json",
    ]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["shape"] == [1, 512, 8]
    found = load_text(out, 512, 8)
    with torch.no_grad():
        expected = model(torch.tensor([[3, 4, 6, 5, 1]])).last_hidden_state[0]
    torch.testing.assert_close(found[:5], expected, rtol=1e-4, atol=1e-5)
    assert not found[5:].any()
    assert main(["text-embed", str(tmp_path), "-o", str(out)]) == CheckpointError.exit_code


def test_a_text_encoder_in_bfloat16_is_close_to_float32(tmp_path: Path) -> None:
    """As upstream's file; the reference is transformers' in float32 with the rounded weights."""
    model = umt5(tmp_path / "umt5").bfloat16()
    path = save(tmp_path / "umt5.pth", original_names(model))
    found = embed(path, "a person talking", tokenizer=tmp_path / "umt5")[0, :4]
    with torch.no_grad():
        expected = model.float()(torch.tensor([[3, 4, 5, 1]])).last_hidden_state[0]
    assert 1e-4 < (found - expected).norm() / expected.norm() < 2e-2


def original_names(model: Any) -> Weights:
    """The weights of transformers' UMT5 encoder as upstream's file has them."""
    names = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
    for i in range(model.config.num_layers):
        first, second = (f"encoder.block.{i}.layer.{j}" for j in (0, 1))
        names |= {f"blocks.{i}.attn.{x}.weight": f"{first}.SelfAttention.{x}.weight" for x in "qkvo"}
        names[f"blocks.{i}.pos_embedding.embedding.weight"] = f"{first}.SelfAttention.relative_attention_bias.weight"
        names |= {f"blocks.{i}.norm1.weight": f"{first}.layer_norm.weight"}
        names |= {f"blocks.{i}.norm2.weight": f"{second}.layer_norm.weight"}
        products = {"gate.0": "wi_0", "fc1": "wi_1", "fc2": "wo"}
        names |= {f"blocks.{i}.ffn.{a}.weight": f"{second}.DenseReluDense.{b}.weight" for a, b in products.items()}
    weights = model.state_dict()
    return {ours: weights[theirs].clone() for ours, theirs in names.items()}


def test_umt5_from_upstreams_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same embedding as from the Hugging Face folder; without a tokenizer the error says how to give it."""
    folder, path = tmp_path / "umt5", save(tmp_path / "umt5.pth", original_names(umt5(tmp_path / "umt5")))
    assert describe(path)["kind"] == "text encoder (UMT5)"
    found = []
    for source in ([str(folder)], [str(path), "--tokenizer", str(folder)]):
        out = tmp_path / f"{len(found)}.safetensors"
        assert main(["text-embed", *source, "-o", str(out)]) == 0
        found.append(load_text(out, 512, 8))
    assert torch.equal(*found)
    assert found[0].any()
    assert main(["text-embed", str(path), "-o", str(tmp_path / "out")]) == CheckpointError.exit_code
    assert "--tokenizer FOLDER" in capsys.readouterr().err
    student = save(tmp_path / "student.pth", student_weights())
    arguments = ["text-embed", str(student), "--tokenizer", str(folder), "-o", str(tmp_path / "out")]
    assert main(arguments) == CheckpointError.exit_code
    assert "looks like: Lip Forcing student" in capsys.readouterr().err


def test_a_folder_of_distributed_training(tmp_path: Path) -> None:
    """Written by torch.distributed.checkpoint; also found beside the file of the same step."""
    weights = student_weights()
    folder = tmp_path / "0000100.net_model"
    content = {f"_core.{name}": x for name, x in weights.items()} | {"step": 3}
    checkpoint.save(content, checkpoint_id=folder, no_dist=True)
    step = save(tmp_path / "0000100.pth", {"iteration": 100, "scheduler": {}, "grad_scaler": {}, "callbacks": {}})
    for path in (folder, step):
        same(load_student([path], "toy"), weights)
    found = describe(folder)
    assert (found["kind"], found["tensors"]) == ("Lip Forcing student", len(weights))
    (folder / "__0_0.distcp").write_bytes((folder / "__0_0.distcp").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_student([folder], "toy")
    (folder / ".metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        load_student([folder], "toy")
    assert not (tmp_path / "exploded").exists()


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)

    def __init__(self, path: Path) -> None:
        self.path = path


def test_errors_identify_wrong_files_and_execute_nothing(tmp_path: Path) -> None:
    weights = student_weights()
    good = save(tmp_path / "good.pth", weights)
    vae = save(tmp_path / "vae.pth", WanVAE(WanVAEConfig(dim=4)).state_dict())
    cut = tmp_path / "cut.pth"
    cut.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    bomb = tmp_path / "bomb.pth"
    bomb.write_bytes(pickle.dumps({"weight": Bomb(tmp_path / "exploded")}))
    half = {name: x for name, x in weights.items() if "blocks.2.ffn" not in name} | {"extra": torch.zeros(1)}
    half["head.head.bias"] = torch.zeros(3)
    cases: list[tuple[Path, str]] = [
        (vae, "looks like: Wan VAE"),
        (cut, "cannot be read"),
        (bomb, "nothing in it was executed"),
        (tmp_path / "none.pth", "no such file"),
        (tmp_path, "is a folder without .metadata"),
        (save(tmp_path / "dict.pth", {"a": 1}), "holds a dict with a"),
        (save(tmp_path / "half.pth", half), "missing: blocks.2.ffn.0"),
    ]
    for path, message in cases:
        with pytest.raises(CheckpointError, match=message):
            load_student([path], "toy")
    with pytest.raises(CheckpointError) as error:
        load_student([tmp_path / "half.pth"], "toy")
    assert all(part in str(error.value) for part in ("unknown: extra", "head.head.bias [3], not [64]"))
    with pytest.raises(CheckpointError, match=r"24 wide, 4 layers"):
        load_student([good], "14b")
    with pytest.raises(CheckpointError, match="looks like: Lip Forcing student"):
        load_wan_vae(good)
    assert not (tmp_path / "exploded").exists()


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A whole set of files, in the formats they are released in."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    folder = tmp_path_factory.mktemp("release")
    torch.manual_seed(0)
    wan = WanVAE(WanVAEConfig(dim=4))
    randomise(wan)
    Wav2Vec2Model(Wav2Vec2Config(**WAV2VEC_SIZES)).save_pretrained(folder / "wav2vec")
    mask = np.full((256, 256), 255, np.uint8)
    mask[128:, 32:-32] = 0
    cv2.imwrite(str(folder / "mask.png"), mask)
    return Release(
        lookback=3.2,
        lookahead=0.08,
        model="toy",
        student=(save(folder / "student.pth", student_weights()),),
        wav2vec=folder / "wav2vec",
        text=save(folder / "text.pt", {"context": torch.randn(1, 4, 8)}),
        mask=folder / "mask.png",
        vae=save(folder / "vae.pth", wan.state_dict()),
        taehv=save(folder / "taehv.pth", TAEHV(TAEHVConfig()).state_dict()),
    )


@pytest.fixture(scope="module")
def exported(release: Release, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Its bundle, and what `export` returns."""
    folder = tmp_path_factory.mktemp("exported") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STUDENTS, "toy", TOY)
        return export(release, folder), folder


def test_a_release_becomes_a_bundle_that_gives_the_torch_paths_frames(
    release: Release, exported: tuple[Any, Path]
) -> None:
    result, bundle = exported
    assert result["parity"]["passed"]
    assert {*result["graphs"]} == {"audio_encoder", "video_encoder", "denoiser", "video_decoder"}
    assert "clip_encoder" in result["parity"]["graphs"]
    sample = samples.FACE
    sound = np.random.default_rng(0).standard_normal(24_000).astype(np.float32) * 0.1
    parts = StudentParts.from_release(release)
    assert parts.student
    engines = [LipSyncEngine.load(bundle)]
    parts.student.float()
    engines.append(LipSyncEngine(Bundle.load(bundle), TorchBackend(parts)))
    shown = []
    for engine in engines:
        with engine.session(sample) as session:
            session.push_audio(sound, 16000)
            session.flush()
            shown.append(np.stack([np.concatenate([p.ravel() for p in frame.picture.planes]) for frame in session]))
    assert len(shown[0]) > 30
    assert np.abs(shown[0].astype(int) - shown[1]).max() <= 1
    assert np.abs(shown[0].astype(int) - shown[0][:1]).max() > 1


class RecordingBackend(TorchBackend):
    """Attributes: given: what the features were computed from."""

    given: tuple[Array, int]

    @property
    def encode_clip(self) -> Callable[[Array, int], Array] | None:
        encode = super().encode_clip
        assert encode

        def recorded(samples: Array, frames: int) -> Array:
            self.given = samples, frames
            return encode(samples, frames)

        return recorded


def test_upstream_mode_takes_its_features_as_the_original(
    release: Release, exported: tuple[Any, Path], tmp_path: Path
) -> None:
    """Of sound resampled by soxr; of less than nine frames, with zeros after the normalised waveform."""
    _, bundle = exported
    parts = StudentParts.from_release(release)
    assert isinstance(parts.speech, LiveWav2Vec)
    backend = RecordingBackend(parts)
    engine = LipSyncEngine(Bundle.load(bundle), backend)
    sound = (0.1 * np.random.default_rng(0).standard_normal((10_007, 2)) + 0.02).astype(np.float32)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(48_000)
        file.writeframes(to_int16(sound).tobytes())
    audio, out = tmp_path / "a.wav", tmp_path / "out.mkv"
    assert engine.dub(samples.FACE, audio, out, face=FaceOptions(upstream=True)).frames == 9
    mono = soxr.resample((to_int16(sound) / np.float32(32768)).T.mean(axis=0), 48_000, 16_000, quality="soxr_hq")
    expected = np.pad(mono, (0, 3336 - len(mono)))
    np.testing.assert_array_equal(backend.given[0], expected)
    assert backend.given[1] == 9

    x = torch.from_numpy(expected)
    x = F.pad((x - x.mean()) / torch.sqrt(x.var(correction=0) + 1e-7), (0, 9 * 640 - len(x)))
    with torch.no_grad():
        hidden = F.interpolate(parts.speech.model.feature_extractor(x[None]), size=9, mode="linear", align_corners=True)
        hidden, _ = parts.speech.model.feature_projection(hidden.transpose(1, 2))
        encoder, states = parts.speech.model.encoder, []
        for module in (encoder.layer_norm, *encoder.layers):
            module.register_forward_hook(lambda module, given, x: states.append(x if isinstance(x, Tensor) else x[0]))
        encoder(hidden)
    features = torch.cat([states[-1], *states], dim=-1)[0].numpy()
    loaded = LipSyncEngine.load(bundle).backend
    for encode in (backend.encode_clip, loaded.encode_clip):
        assert encode
        assert np.linalg.norm(encode(*backend.given) - features) < 1e-5 * np.linalg.norm(features)

    assert engine.dub(samples.FACE, audio, out).frames == 6  # 0.21 s, all of it
    assert backend.given[1] == 6
    assert np.abs(backend.given[0][:3000] - expected[:3000]).max() > 1e-5  # another resampler


def test_a_set_that_is_not_complete_lists_all(release: Release, tmp_path: Path) -> None:
    assert {*release.check().values()} >= {"Wan VAE (4 channels)", "TAEHV (16 latent channels)"}
    wrong = replace(release, vae=release.taehv, text=tmp_path / "none.pt", mask=tmp_path / "none.png", taehv=None)
    with pytest.raises(CheckpointError) as error:
        wrong.check()
    for part in ("looks like: TAEHV", "no such file", "no mask", "no file for the decoder: taehv"):
        assert part in str(error.value)


def test_inspect_identifies_a_file(release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(release.vae)]) == 0
    assert "Wan VAE (4 channels)" in capsys.readouterr().out
    assert main(["inspect", str(release.student[0]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "Lip Forcing student"
    assert found["tensors"] == len(student_weights())


@pytest.mark.parametrize(("model", "tensors", "parameters"), [("14b", 1137, 14.294e9), ("1.3b", 857, 1.421e9)])
def test_the_released_state_dicts(model: str, tensors: int, parameters: float) -> None:
    with torch.device("meta"):
        state = CausalDiT(STUDENTS[model]).state_dict()
    assert len(state) == tensors
    assert sum(x.numel() for x in state.values()) == pytest.approx(parameters, rel=5e-4)


def test_taehv_has_the_released_size() -> None:
    model = TAEHV(TAEHVConfig())
    sizes = {half: sum(x.numel() for x in getattr(model, half).parameters()) for half in ("encoder", "decoder")}
    assert sizes == {"encoder": pytest.approx(1.47e6, rel=5e-3), "decoder": pytest.approx(9.84e6, rel=5e-3)}


def sparse_safetensors(path: Path, state: Weights) -> None:
    """A file with a valid header and sparse data."""
    header, offset = {}, 0
    for name, x in state.items():
        size = 2 * x.numel()
        header[name] = {"dtype": "BF16", "shape": list(x.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def test_a_check_of_14b_reads_headers_alone(release: Release, tmp_path: Path) -> None:
    """Sparse files of 28 GB, in a separate process whose memory is measured."""
    with torch.device("meta"):
        sparse_safetensors(tmp_path / "student.safetensors", CausalDiT(STUDENTS["14b"]).state_dict())
    assert describe(tmp_path / "student.safetensors")["size"] == "14b, 65 channels"
    arguments = ["export", "--model", "14b", "--student", str(tmp_path / "student.safetensors"), "--check", "--json"]
    for option in ("vae", "taehv", "wav2vec", "text", "mask"):
        arguments += [f"--{option}", str(getattr(release, option))]
    code = (
        f"from lipstream.cli import main; status = main({arguments!r}); import sys\n"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"  # not its parent's
        "print(peak.split()[1], file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "Lip Forcing student (14b, 65 channels)" in done.stdout
    assert int(done.stderr.splitlines()[-1]) < 2 << 20  # KiB
    done = subprocess.run(
        [sys.executable, "-c", code.replace("'14b'", "'1.3b'")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == CheckpointError.exit_code
    assert "not like the 1.3b student" in done.stdout


def test_open_weights_gives_plain_names(tmp_path: Path) -> None:
    wrapped = {"_core.a.base_layer.weight": torch.ones(2), "_core.b": torch.zeros(1)}
    assert {*open_weights(save(tmp_path / "w.pth", {"net": wrapped}))} == {"a.weight", "b"}
    assert {*open_weights(save(tmp_path / "x.pth", wrapped), shapes_only=True)} == {"a.weight", "b"}
