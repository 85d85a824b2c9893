#!/usr/bin/env python3
"""Export a bundle of a released size with random weights, and build its engines: does TensorRT build it, at what cost?

    python tests/engines/full_size.py export PART PRECISION FOLDER [--layers N]
    python tests/engines/full_size.py build FOLDER RING [--conv3d 2d]        (with a TensorRT that builds)

PART is a student's size, or `wan` or `taehv`: that codec with wav2vec 2.0, in the sizes of a 1.3B bundle.
Prints JSON: seconds, peak memory of the process in GiB, megabytes.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lipstream_models.parts import StudentParts


def peak() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)


def export(part: str, precision: str, folder: Path, layers: int) -> dict[str, Any]:
    from lipstream_export.bundle import export_bundle

    start = time.perf_counter()
    parts = codec(part, precision) if part in ("wan", "taehv") else student(part, precision, layers)
    bundle = export_bundle(parts, folder, precision=precision)
    size_ = sum(file["bytes"] for file in bundle.manifest.files.values())
    return {"seconds": round(time.perf_counter() - start), "peak_gib": peak(), "mb": round(size_ / 1e6)}


def student(size: str, precision: str, layers: int) -> StudentParts:
    """Products in bfloat16 from the start: the model never exists in float32."""
    import torch
    from lipstream_export.precision import quantise
    from lipstream_export.precision.fp8 import linear_layers
    from lipstream_models import CausalDiT
    from lipstream_models.config import STUDENTS
    from lipstream_models.layers import Conv3d, Linear
    from lipstream_models.parts import StudentParts

    config = STUDENTS[size] if not layers else replace(STUDENTS[size], num_layers=layers)
    torch.set_default_dtype(torch.bfloat16)
    student = CausalDiT(config).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    for module in student.modules():
        if not isinstance(module, Linear | Conv3d):
            for name, parameter in [*module.named_parameters(recurse=False)]:
                setattr(module, name, torch.nn.Parameter(parameter.float(), requires_grad=False))
    shared = {f"modulation.{i}": torch.zeros(6 * config.num_layers + 2, config.dim) for i in range(3)}
    heads = (config.num_heads, config.text_len, config.head_dim)
    shared |= {f"text_{kind}.{i}": torch.zeros(heads) for kind in "kv" for i in range(config.num_layers)}
    if precision == "fp8":
        student = quantise(student, dict.fromkeys(linear_layers(student), 8.0))
    return StudentParts(config, student, model={"name": size}, shared=shared)


def codec(name: str, precision: str) -> StudentParts:
    """Both halves of a codec, and wav2vec 2.0, whose weights stay in float32."""
    import torch
    from lipstream_export.precision import to_bfloat16
    from lipstream_export.settings import LOOKAHEAD, LOOKBACK
    from lipstream_models import TAEHV, TAEHVConfig, WanVAE, WanVAEConfig
    from lipstream_models.config import STUDENTS
    from lipstream_models.parts import StudentParts
    from lipstream_models.released.wav2vec import LiveWav2Vec
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    # The defaults are those of wav2vec2-base; released files are loaded with this attention, too.
    speech = LiveWav2Vec(
        Wav2Vec2Model(Wav2Vec2Config(attn_implementation="eager")).eval(), lookback=LOOKBACK, lookahead=LOOKAHEAD
    )
    config = STUDENTS["1.3b"]
    video: dict[str, Any] = {"taehv": TAEHV(TAEHVConfig())} if name == "taehv" else {"wan": WanVAE(WanVAEConfig())}
    masks = {"pixel": torch.ones(config.crop_size)}
    masks["pixel"][190:486] = 0  # as the released mask
    return to_bfloat16(StudentParts(config, speech=speech, encoder=name, decoder=name, masks=masks, **video))


def build(folder: Path, ring: str, conv3d: str) -> dict[str, Any]:
    from lipstream.bundle import Bundle
    from lipstream_engines.build import parse, profiles
    from lipstream_engines.recipe import Recipe

    bundle = Bundle.load(folder, verify=False)
    recipe = Recipe("test", "", bundle.manifest.precision, ring=ring, conv3d=conv3d)  # type: ignore[arg-type]
    found = {}
    for graph in sorted(bundle.manifest.graphs):
        start = time.perf_counter()
        parsed = parse(bundle, graph, recipe)
        parsed.require(graph)
        shapes = profiles(graph, bundle.manifest.geometry, recipe)
        plan, _ = parsed.build(graph, recipe, shapes, b"", lambda *step: True)
        seconds = round(time.perf_counter() - start)
        found[graph] = {"seconds": seconds, "peak_gib": peak(), "mb": round(plan.nbytes / 1e6)}
        del plan, parsed
    return found


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = options.add_subparsers(dest="command", required=True)
    first = commands.add_parser("export")
    first.add_argument("part", choices=("1.3b", "14b", "wan", "taehv"))
    first.add_argument("precision", choices=("bf16", "fp8"))
    first.add_argument("folder", type=Path)
    first.add_argument("--layers", type=int, default=0)
    second = commands.add_parser("build")
    second.add_argument("folder", type=Path)
    second.add_argument("ring", choices=("native", "function"))
    second.add_argument("--conv3d", choices=("3d", "2d"), default="3d")
    args = options.parse_args()
    if args.command == "export":
        print(json.dumps(export(args.part, args.precision, args.folder, args.layers)))
    else:
        print(json.dumps(build(args.folder, args.ring, args.conv3d)))
