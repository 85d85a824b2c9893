"""The files that commands of the documentation name, at the smallest sizes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from lipstream import samples
from lipstream.bundle import Bundle
from lipstream.media import VideoWriter
from lipstream_evaluate.syncnet import SyncNet
from lipstream_models import TAEHV, CausalDiT, SpeechEncoder, TAEHVConfig, WanVAE, WanVAEConfig
from lipstream_models.config import TINY_TAEHV
from lipstream_training.data.clips import draw_video
from lipstream_training.data.speech import SAMPLE_RATE, speech
from lipstream_training.distil import toy_dataset
from lipstream_training.distil.parallel import ADAPTED
from onnx import TensorProto, helper
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from toys import RELEASED, WAV2VEC_SIZES, randomise
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

OWN = ("audio_proj.", "audio_cond_projs.", "patch_embedding.")
"""What training adds to the base model, by the beginnings of its names."""


def videos(folder: Path) -> None:
    """videos/, more.txt that lists another one, and SyncNet."""
    (folder / "videos").mkdir()
    (folder / "more").mkdir()
    speaker(folder / "videos" / "one.mp4", 1)
    speaker(folder / "more" / "two.mp4", 2)
    (folder / "more.txt").write_text("more/two.mp4\n")
    syncnet(folder)


def speaker(path: Path, number: int, seconds: float = 7.0) -> None:
    """A drawn person who speaks from the start."""
    rng = np.random.default_rng([6, number])
    while not (said := speech(seconds, rng).clean)[: 2 * SAMPLE_RATE].any():
        pass
    frames = draw_video(rng, said, (320, 384))[0]
    with VideoWriter(path, 384, 320, rate=25, preset="ultrafast", audio_rate=SAMPLE_RATE) as writer:
        writer.write_audio(said)
        for frame in frames:
            writer.write(frame)


def syncnet(folder: Path) -> None:
    torch.manual_seed(0)
    torch.save(SyncNet().state_dict(), folder / "syncnet_v2.model")


def shipped(folder: Path) -> None:
    """The shipped bundle by the names of the page, and the folder of its picture."""
    for name in ("SOURCE", "BUNDLE"):
        shutil.copytree(Bundle.load("tiny").path, folder / name)
    (folder / "docs").mkdir()
    stages(folder / "OUT")


def trained(folder: Path) -> None:
    stages(folder / "tiny")


def stages(out: Path) -> None:
    """Stages of `lipstream-train tiny` without an option for their length; it takes those that are done as they are."""
    torch.manual_seed(0)
    out.mkdir()
    save_file(SpeechEncoder().state_dict(), out / "audio_encoder.safetensors")
    save_file(TAEHV(TINY_TAEHV).state_dict(), out / "decoder.safetensors")


def study(folder: Path) -> None:
    """The study's clips: four drawn people again and again."""
    (folder / "out" / "study").mkdir(parents=True)
    made = toy_dataset._make(4, quiet=True)
    whole = {name: x if name in ("back", "forth") else torch.cat([x] * 13) for name, x in made.items()}
    tensors = {name: x.contiguous() for name, x in whole.items()}
    save_file(tensors, folder / "out" / "study" / "micro-700-48.safetensors")


def codecs(folder: Path) -> None:
    """Wan VAE, TAEHV, wav2vec 2.0, the prompt and the mask."""
    torch.manual_seed(0)
    wan = WanVAE(WanVAEConfig(dim=4))
    randomise(wan)
    torch.save(wan.state_dict(), folder / "Wan2.1_VAE.pth")
    torch.save(TAEHV(TAEHVConfig()).state_dict(), folder / "taew2_1.pth")
    Wav2Vec2Model(Wav2Vec2Config(**WAV2VEC_SIZES)).save_pretrained(folder / "wav2vec2-base-960h")
    torch.save({"context": torch.randn(1, RELEASED.text_len, RELEASED.text_dim)}, folder / "prompt.pt")
    mask = np.full((256, 256), 255, np.uint8)
    mask[128:, 32:-32] = 0
    cv2.imwrite(str(folder / "mask.png"), mask)


def student() -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = CausalDiT(RELEASED)
    randomise(model)
    return {name: x.detach().bfloat16() for name, x in model.state_dict().items()}


def training_files(folder: Path) -> None:
    """A base model as Wan 2.1 was published, an adapter with what training adds, and what `codecs` writes."""
    (folder / "videos").mkdir()
    speaker(folder / "videos" / "one.mp4", 1)
    codecs(folder)
    syncnet(folder)
    weights = student()
    base = {name: x for name, x in weights.items() if not name.startswith(OWN)}
    base["patch_embedding.weight"] = weights["patch_embedding.weight"][:, : RELEASED.latent_channels].clone()
    base["patch_embedding.bias"] = weights["patch_embedding.bias"]
    for name in ("wan2.1-t2v-14b", "wan2.1"):
        save_file(base, folder / f"{name}.safetensors")
    adapter = {name: x for name, x in weights.items() if name.startswith(OWN)}
    for name, x in base.items():
        layer = name.removesuffix(".weight")
        if name.endswith(".weight") and re.fullmatch(ADAPTED, layer):
            adapter[f"{layer}.lora_A.weight"] = (torch.randn(128, x.shape[1]) / 100).bfloat16()
            adapter[f"{layer}.lora_B.weight"] = (torch.randn(x.shape[0], 128) / 100).bfloat16()
    torch.save(adapter, folder / "adapter.pt")


def released(folder: Path) -> None:
    """A merged student, what `codecs` writes, and a text encoder."""
    codecs(folder)
    torch.save(student(), folder / "lipforcing_14b.pth")
    words = ("<pad>", "</s>", "<unk>", "a", "person", "talking")
    text = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    text.pre_tokenizer = pre_tokenizers.Whitespace()
    text.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokens = PreTrainedTokenizerFast(tokenizer_object=text, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    tokens.save_pretrained(folder / "umt5-xxl")
    sizes = UMT5Config(vocab_size=len(words), d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    UMT5EncoderModel(sizes).save_pretrained(folder / "umt5-xxl")


def evaluated(folder: Path) -> None:
    """A video and what was made of it, the results of three systems, SyncNet, and a face recogniser."""
    for path in ("out/demo.mp4", "sdk/lipstream/sample/face.mp4"):
        (folder / path).parent.mkdir(parents=True)
        shutil.copy(samples.FACE, folder / path)
    systems = ("results/ours", "results/wav2lip", "results/latentsync", "hdtf/videos", "hdtf/speech")
    for name in systems:
        (folder / name).mkdir(parents=True)
    speaker(folder / "hdtf" / "videos" / "may.mp4", 1, 2.0)
    for name in systems[:3]:
        shutil.copy(folder / "hdtf" / "videos" / "may.mp4", folder / name / "may.mp4")
    shutil.copy(samples.SPEECH, folder / "hdtf" / "speech" / "may.wav")
    syncnet(folder)
    mean = helper.make_node("AveragePool", ["face"], ["means"], kernel_shape=[56, 56], strides=[56, 56])
    graph = helper.make_graph(
        [mean, helper.make_node("Flatten", ["means"], ["vector"])],
        "recogniser",
        [helper.make_tensor_value_info("face", TensorProto.FLOAT, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", 12])],
    )
    recogniser = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(recogniser, folder / "w600k_r50.onnx")
