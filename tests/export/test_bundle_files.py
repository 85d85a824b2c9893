"""Contents of an exported bundle: one function, static shapes, weights stored once, no data of the machine."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exported import Exported
from lipstream.bundle import Bundle
from lipstream.errors import ConfigError, OutputError
from lipstream_export.bundle import export_bundle
from lipstream_models.parts import StudentParts
from onnx import TensorProto, numpy_helper
from toys import CONFIG, toy_student, toy_text


def graph(exported: Exported, name: str, *, weights: bool = False) -> onnx.ModelProto:
    return onnx.load(str(exported.bundle.file(f"{name}.onnx")), load_external_data=weights)


def test_every_layer_calls_the_ring_function_of_the_file(complete: Exported) -> None:
    model = graph(complete, "denoiser")
    assert [(f.domain, f.name) for f in model.functions] == [("lipstream", "KVRingWrite")]
    calls = [node for node in model.graph.node if node.op_type == "KVRingWrite"]
    assert len(calls) == complete.config.num_layers
    assert {node.domain for node in calls} == {"lipstream"}
    assert [list(node.output) for node in calls] == [[f"k_out.{i}", f"v_out.{i}"] for i in range(4)]
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": 23, "lipstream": 1}
    body = model.functions[0]
    assert {node.domain for node in body.node} == {""}
    assert [len(node.input) for node in calls] == [len(body.input)] * 4


@pytest.mark.parametrize("name", ["audio_encoder", "video_encoder", "video_decoder"])
def test_the_other_graphs_are_standard_onnx(complete: Exported, name: str) -> None:
    model = graph(complete, name)
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}


def test_attended_frames_are_the_only_dynamic_size(complete: Exported) -> None:
    for name in ("audio_encoder", "video_encoder", "denoiser", "video_decoder"):
        model = graph(complete, name)
        for value in [*model.graph.input, *model.graph.output]:
            dims = value.type.tensor_type.shape.dim
            symbolic = [i for i, dim in enumerate(dims) if not dim.HasField("dim_value")]
            ring = re.fullmatch(r"[kv](_out)?\.\d+", value.name)
            assert symbolic == ([0] if ring else []), (name, value.name)
            assert len({dims[i].dim_param for i in symbolic}) <= 1


def test_names_and_shapes_of_a_pass(complete: Exported) -> None:
    c = complete.config
    model = graph(complete, "denoiser").graph
    inputs = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.input}
    pairs, frame = c.head_dim // 2 - 2 * (c.head_dim // 6), [c.tokens, c.num_heads, c.head_dim]
    per_layer = {f"text_{x}.{i}": [c.num_heads, c.text_len, c.head_dim] for i in range(4) for x in "kv"}
    per_layer |= {f"{x}.{i}": [0, *frame] for i in range(4) for x in "kv"}
    assert inputs == {
        "latent": [4, 3, *c.latent_size],
        "condition": [13, 3, *c.latent_size],
        "audio": [12, c.audio_dim],
        "modulation": [6 * c.num_layers + 2, c.dim],
        "rope_cos": [3, pairs],
        "rope_sin": [3, pairs],
        "slot": [1],
        **per_layer,
    }
    outputs = [value.name for value in model.output]
    assert outputs == ["velocity", *(f"{x}_out.{i}" for i in range(4) for x in "kv")]


def test_files_contain_no_data_of_the_machine(complete: Exported) -> None:
    paths = [Path.home(), Path(torch.__file__).parents[1], Path(__file__).parents[2], complete.bundle.path]
    words = [rb"\.py\b", b"Traceback", b"site-packages", *(re.escape(str(path).encode()) for path in paths)]
    for file in complete.bundle.path.iterdir():
        if file.suffix != ".bin":
            assert [word for word in words if re.search(word, file.read_bytes())] == [], file.name


def test_all_files_have_the_same_read_permissions(complete: Exported) -> None:
    assert {file.stat().st_mode & 0o444 for file in complete.bundle.path.iterdir()} == {
        (complete.bundle.path / "manifest.json").stat().st_mode & 0o444
    }


def places(exported: Exported) -> dict[tuple[int, int], set[str]]:
    """(offset, length) in the weight file -> names of the tensors there, over all graphs."""
    found: dict[tuple[int, int], set[str]] = {}
    for name in ("audio_encoder", "video_encoder", "denoiser", "video_decoder"):
        for tensor in graph(exported, name).graph.initializer:
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if entries:
                assert entries["location"] == "weights.bin"
                place = int(entries["offset"]), int(entries["length"])
                found.setdefault(place, set()).add(tensor.name)
    return found


def weight_places(exported: Exported) -> dict[str, tuple[int, int]]:
    """Name of a weight -> (offset, length), as weights.json has it."""
    index = json.loads(exported.bundle.file("weights.json").read_text())
    return {
        name: (place["offset"], math.prod(place["shape"]) * (2 if place["bfloat16"] else 4))
        for name, place in index.items()
    }


def test_weights_are_stored_once(complete: Exported) -> None:
    size = complete.bundle.file("weights.bin").stat().st_size
    used = sorted({*places(complete), *weight_places(complete).values()})
    end = 0
    for offset, length in used:
        assert offset % 64 == 0
        assert end <= offset < end + 64
        end = offset + length
    assert end == size
    blob = complete.bundle.file("weights.bin").read_bytes()
    contents = [blob[offset : offset + length] for offset, length in used]
    assert len(set(contents)) == len(contents)


def test_graphs_and_weight_list_share_the_large_weights(complete: Exported) -> None:
    """Weights that only the weight list stores in the file are small; the graphs have their own copies of those."""
    in_graphs = places(complete)
    alone = [place for place in weight_places(complete).values() if place not in in_graphs]
    assert alone
    assert max(length for _, length in alone) < 1024


def test_only_weights_exact_in_bfloat16_are_stored_in_it(complete: Exported) -> None:
    """The student's weights were rounded, the autoencoder's were not; all are read back with the same bits."""
    assert complete.parts.student is not None
    assert complete.parts.taehv is not None
    wanted = {f"student.{n}": x for n, x in complete.parts.student.state_dict().items()}
    wanted |= {f"codec.{n}": x for n, x in complete.parts.taehv.state_dict().items()}
    kinds = set()
    for name in ("denoiser", "video_encoder", "video_decoder"):
        for tensor in graph(complete, name, weights=True).graph.initializer:
            parameter = wanted.get(tensor.name.removesuffix(".bfloat16"))
            if parameter is not None:
                found = numpy_helper.to_array(tensor).astype(np.float32)
                np.testing.assert_array_equal(found.ravel(), parameter.numpy().ravel())
                if tensor.data_type == TensorProto.BFLOAT16:
                    assert torch.equal(parameter.bfloat16().float(), parameter)
                kinds.add((tensor.name.partition(".")[0], tensor.data_type))
    assert ("student", TensorProto.BFLOAT16) in kinds
    assert ("codec", TensorProto.FLOAT) in kinds
    assert ("codec", TensorProto.BFLOAT16) not in kinds


def test_constants_are_those_of_the_student(complete: Exported) -> None:
    student, text = complete.parts.student, complete.parts.text
    assert student is not None
    assert text is not None
    found = complete.bundle.constants
    for i, t in enumerate(complete.config.t_list):
        t_emb, e = student.time(torch.tensor(t, dtype=torch.float64))
        rows = [row for block in student.layers for row in block.modulation[0] + e]
        rows += [*(student.head.modulation[0] + t_emb)]
        rows = [1 + row if i % 6 in (1, 4) else row for i, row in enumerate(rows)]  # scales, as factors
        np.testing.assert_allclose(found[f"modulation.{i}"], torch.stack(rows).numpy(), atol=1e-5)
    for i, (k, v) in enumerate(student.text_kv(text[None])):
        np.testing.assert_allclose(found[f"text_k.{i}"], k[0].transpose(0, 1).numpy(), atol=1e-5)
        np.testing.assert_allclose(found[f"text_v.{i}"], v[0].transpose(0, 1).numpy(), atol=1e-5)
    assert found["mask.pixel"].shape == complete.bundle.manifest.geometry.crop_size


def test_manifest(complete: Exported) -> None:
    manifest, c = complete.bundle.manifest, complete.config
    assert (manifest.geometry.window, manifest.geometry.sink, manifest.geometry.tokens) == (c.window, c.sink, c.tokens)
    assert manifest.t_list == c.t_list
    modules = (complete.parts.student, complete.parts.taehv, complete.parts.speech)
    assert manifest.model["parameters"] == sum(p.numel() for m in modules if m for p in m.parameters())
    assert Bundle.load(complete.bundle.path).manifest == manifest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 8}, "window 8 with sink 1.*not a whole number of chunks"),
        ({"sink": 7}, "window 7 with sink 7"),
        ({"num_heads": 5}, "dim 24 is not a multiple of twice the 5 heads"),
        ({"num_heads": 0}, "0 heads"),
        ({"latent_size": (5, 6)}, r"latent size \(5, 6\)"),
    ],
)
def test_contradictory_sizes_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = replace(CONFIG, **changes)
    with pytest.raises(ConfigError, match=message):
        export_bundle(StudentParts(config, toy_student(), toy_text()), tmp_path / "bundle")
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_is_not_a_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(OutputError, match="not a bundle"):
        export_bundle(StudentParts(CONFIG, toy_student(), toy_text()), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["holiday.jpg"]
