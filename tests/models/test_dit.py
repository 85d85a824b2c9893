"""The DiT: the released checkpoint's names and sizes, and its parts in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from lipstream_models import STUDENTS, CausalDiT, ClipAttention, StudentConfig
from lipstream_models.dit import RMSNorm
from numpy.typing import NDArray
from torch import Tensor
from toys import CONFIG, randomise, toy_student, toy_text


def released_tensors(dim: int, ffn: int, layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes as the released files have them."""

    def linear(name: str, n_out: int, n_in: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (n_out, n_in)
        yield f"{name}.bias", (n_out,)

    yield "patch_embedding.weight", (dim, 65, 1, 2, 2)
    yield "patch_embedding.bias", (dim,)
    yield from linear("text_embedding.0", dim, 4096)
    yield from linear("text_embedding.2", dim, dim)
    yield from linear("time_embedding.0", dim, 256)
    yield from linear("time_embedding.2", dim, dim)
    yield from linear("time_projection.1", 6 * dim, dim)
    yield "head.modulation", (1, 2, dim)
    yield from linear("head.head", 64, dim)
    yield from linear("audio_proj.proj", 32, 43008)
    yield "audio_proj.norm_out.weight", (32,)
    yield "audio_proj.norm_out.bias", (32,)
    for i in range(layers // 2 - 1):
        yield from linear(f"audio_cond_projs.{i}", dim, 32)
    for i in range(layers):
        block = f"blocks.{i}"
        yield f"{block}.modulation", (1, 6, dim)
        yield f"{block}.norm3.weight", (dim,)
        yield f"{block}.norm3.bias", (dim,)
        yield from linear(f"{block}.ffn.0", ffn, dim)
        yield from linear(f"{block}.ffn.2", dim, ffn)
        for attention in (f"{block}.self_attn", f"{block}.cross_attn"):
            for name in "qkvo":
                yield from linear(f"{attention}.{name}", dim, dim)
            yield f"{attention}.norm_q.weight", (dim,)
            yield f"{attention}.norm_k.weight", (dim,)


@pytest.mark.parametrize(
    ("name", "sizes", "count", "billions"),
    [("1.3b", (1536, 8960, 30), 857, 1.421), ("14b", (5120, 13824, 40), 1137, 14.294)],
)
def test_released_sizes(name: str, sizes: tuple[int, int, int], count: int, billions: float) -> None:
    with torch.device("meta"):
        state = CausalDiT(STUDENTS[name]).state_dict()
    assert {key: tuple(x.shape) for key, x in state.items()} == dict(released_tensors(*sizes))
    assert len(state) == count
    assert round(sum(x.numel() for x in state.values()) / 1e9, 3) == billions


@pytest.mark.parametrize("name", STUDENTS)
def test_every_size_has_whole_heads_and_chunks(name: str) -> None:
    config = STUDENTS[name]
    assert config.head_dim * config.num_heads == config.dim
    assert (config.window - config.sink) % config.chunk_frames == 0
    assert [*config.audio_layers] == [i for i in range(config.num_layers) if 2 <= i <= config.num_layers // 2]


def test_time_embedding_and_modulation() -> None:
    """The sinusoid, cosines first, through the two layers, in float64 NumPy."""
    student = toy_student()
    w = {name: x.double().numpy() for name, x in student.state_dict().items()}

    def silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
        y: NDArray[np.float64] = x / (1 + np.exp(-x))
        return y

    for t in (0.999, 0.769, 0.0):
        angles = 1000 * t * 10000.0 ** (-np.arange(128) / 128)
        h = np.concatenate([np.cos(angles), np.sin(angles)])
        h = silu(w["time_embedding.0.weight"] @ h + w["time_embedding.0.bias"])
        t_emb = w["time_embedding.2.weight"] @ h + w["time_embedding.2.bias"]
        e = w["time_projection.1.weight"] @ silu(t_emb) + w["time_projection.1.bias"]
        found_t, found_e = student.time(torch.tensor(t, dtype=torch.float64))
        np.testing.assert_allclose(found_t.numpy(), t_emb, atol=1e-5)
        np.testing.assert_allclose(found_e.numpy(), e.reshape(6, CONFIG.dim), atol=1e-5)


def test_times_of_frames_are_independent() -> None:
    student = toy_student()
    t = torch.tensor([[0.1, 0.9], [0.0, 0.5]])
    t_emb, e = student.time(t)
    assert t_emb.shape == (2, 2, CONFIG.dim)
    torch.testing.assert_close(e[1, 1], student.time(torch.tensor(0.5))[1])


def test_rms_norm_rounds_before_the_weight() -> None:
    norm = RMSNorm(64).bfloat16()
    norm.weight.data.copy_(torch.randn(64))
    x = torch.randn(10, 64).bfloat16()
    y = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    wanted = (y.bfloat16().double() * norm.weight.double()).bfloat16()
    assert (norm(x) == wanted).float().mean() > 0.99


def test_a_refined_student_predicts_the_reference_frame_until_it_is_trained() -> None:
    """And then any latent pixel depends on those of neighbouring tokens, whose borders it cannot see otherwise."""
    config = replace(CONFIG, refine=5)
    torch.manual_seed(0)
    student = CausalDiT(config).eval().requires_grad_(False)
    c = config.latent_channels
    latent, condition = torch.randn(1, c, 3, 4, 6), torch.randn(1, 3 * c + 1, 3, 4, 6)
    audio, t = torch.randn(1, 12, config.audio_dim), torch.full((1, 3), 0.999)
    attend = ClipAttention(config, 3, causal=True)

    def velocity() -> Tensor:
        found: Tensor = student(latent, condition, audio, t, student.text_kv(toy_text(config)[None]), attend)
        return found

    torch.testing.assert_close(velocity(), latent - condition[:, :c])
    randomise(student)
    assert student.refinement is not None
    features = torch.zeros(1, 5, 1, 4, 6, requires_grad=True)
    found = student.refinement(features, latent[:, :, :1], condition[:, :, :1])
    (slope,) = torch.autograd.grad(found[0, :, 0, 0, 2].sum(), features)  # the pixel right of a token's border
    assert slope[0, :, 0, 0, 1].abs().max() > 0
    gate = (found - student.refinement(features, torch.zeros_like(latent[:, :, :1]), condition[:, :, :1])) / latent[
        :, :, :1
    ]
    assert 0.01 < (gate - 1).abs().max() < 2


def test_unpatchify_puts_rows_columns_and_channels_where_the_released_head_has_them() -> None:
    """Output (ph * 2 + pw) * C + c of token (f, h, w) is pixel (2 h + ph, 2 w + pw) of channel c."""
    student, (rows, columns), c = toy_student(), CONFIG.grid, CONFIG.latent_channels
    x = torch.arange(1.0 * 2 * rows * columns * 4 * c).reshape(1, 2, rows * columns, 4 * c)
    picture = student.unpatchify(x)
    assert picture.shape == (1, c, 2, *CONFIG.latent_size)
    for f, h, w, ph, pw, channel in np.ndindex(2, rows, columns, 2, 2, c):
        expected = x[0, f, h * columns + w, (ph * 2 + pw) * c + channel]
        assert picture[0, channel, f, 2 * h + ph, 2 * w + pw] == expected


def test_tokens_run_row_by_row() -> None:
    """A change of one latent pixel reaches the one token that covers it."""
    student = toy_student()
    latent = torch.zeros(1, 4, 2, *CONFIG.latent_size)
    condition = torch.zeros(1, 13, 2, *CONFIG.latent_size)
    before = student.embed(latent, condition)
    latent[0, 0, 1, 3, 2] = 1  # row 3 // 2 = 1, column 2 // 2 = 1 of 3
    changed = (student.embed(latent, condition) != before).any(-1)
    assert changed.nonzero().tolist() == [[0, 1, 1 * 3 + 1]]


def test_a_latent_frame_depends_on_the_audio_of_its_four_video_frames() -> None:
    student = toy_student()
    features = torch.randn(1, 12, CONFIG.audio_dim)
    before = student.audio(features)
    assert sorted(before) == [2]
    features[0, 7] += 1  # of latent frame 1
    changed = (student.audio(features)[2] != before[2]).any(-1)[0, :, 0]
    assert changed.tolist() == [False, True, False]


def clip(config: StudentConfig, frames: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Latent, condition and audio of a clip."""
    generator = torch.Generator().manual_seed(seed)
    c = config.latent_channels
    return (
        torch.randn(1, c, frames, *config.latent_size, generator=generator),
        torch.randn(1, 3 * c + 1, frames, *config.latent_size, generator=generator),
        torch.randn(1, 4 * frames, config.audio_dim, generator=generator),
    )


def velocity(student: CausalDiT, x: tuple[Tensor, Tensor, Tensor], *, causal: bool) -> Tensor:
    frames = x[0].shape[2]
    attend = ClipAttention(student.config, frames, causal=causal)
    text_kv = student.text_kv(toy_text(student.config)[None])
    return student.forward(*x, torch.full((1, frames), 0.5), text_kv, attend)


def test_the_student_is_causal() -> None:
    student = toy_student()
    before = velocity(student, clip(CONFIG, 12), causal=True)
    for part in range(3):
        x = clip(CONFIG, 12)
        frame = 7 if part < 2 else 4 * 7
        x[part].select(1 if part == 2 else 2, frame).add_(1)  # in chunk 2 of 0 .. 3
        after = velocity(student, x, causal=True)
        assert torch.equal(after[:, :, :6], before[:, :, :6])
        assert not torch.allclose(after[:, :, 6:9], before[:, :, 6:9], atol=1e-4)
        assert not torch.allclose(after[:, :, 9:], before[:, :, 9:], atol=1e-6)


def test_the_teacher_attends_to_all_frames() -> None:
    student = toy_student()
    before = velocity(student, clip(CONFIG, 6), causal=False)
    for frame in range(6):
        x = clip(CONFIG, 6)
        x[0][:, :, frame] += 1
        changed = (velocity(student, x, causal=False) - before).abs().amax((0, 1, 3, 4))
        assert (changed > 1e-6).all()


def test_student_and_teacher_agree_on_the_first_chunk_alone() -> None:
    student = toy_student()
    x = clip(CONFIG, 3)
    torch.testing.assert_close(velocity(student, x, causal=True), velocity(student, x, causal=False))
