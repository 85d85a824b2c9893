"""Invalid bundles are rejected, each fault with its own error; writing a bundle is atomic."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lipstream import LipSyncEngine
from lipstream.bundle import MANIFEST, SHIPPED, Bundle, Manifest, writing
from lipstream.bundle.onnx_header import Tensor, read_header
from lipstream.bundle.validate import parse_manifest
from lipstream.errors import (
    BundleCorruptError,
    BundleNotFoundError,
    BundleVersionError,
    LipStreamError,
    LipStreamInternalError,
    OutputError,
)
from onnx import helper

FILES = (
    "audio_encoder.onnx",
    "constants.safetensors",
    "denoiser.onnx",
    "video_decoder.onnx",
    "video_encoder.onnx",
    "weights.bin",
    "weights.json",
)


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "copy")


def edit(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Apply `change` to the manifest of `bundle`."""
    data = json.loads((bundle / MANIFEST).read_text())
    change(data)
    (bundle / MANIFEST).write_text(json.dumps(data))


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_the_shipped_bundle_is_complete(tiny: Path) -> None:
    bundle = Bundle.load(tiny)
    assert {*FILES} == {*bundle.manifest.files}
    assert bundle.manifest.geometry.crop_size == (96, 96)
    assert bundle.manifest.geometry.sequence == "masked"
    assert bundle.manifest.t_list[-1] == 0
    assert {"mask.pixel", "mask.latent", "mask.composite"} <= {*bundle.constants}
    with pytest.raises(LipStreamInternalError, match=r"other\.onnx"):
        bundle.file("other.onnx")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["start", "end"])
def test_one_flipped_bit(copy: Path, name: str, place: str) -> None:
    flip(copy / name, 0 if place == "start" else -1)
    with pytest.raises(BundleCorruptError, match=name):
        Bundle.load(copy)
    with suppress(BundleCorruptError):  # where the bit made the file unreadable
        Bundle.load(copy, verify=False)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_and_a_shortened_file(copy: Path, name: str) -> None:
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[:-1])
    with pytest.raises(BundleCorruptError, match=name):
        Bundle.load(copy, verify=False)
    (copy / name).unlink()
    with pytest.raises(BundleCorruptError, match=f"{name} is missing"):
        Bundle.load(copy, verify=False)


def test_damage_without_verification_is_a_typed_error(copy: Path) -> None:
    (copy / "constants.safetensors").write_bytes(b"\xff" * (copy / "constants.safetensors").stat().st_size)
    with pytest.raises(BundleCorruptError, match="constants"):
        LipSyncEngine.load(copy, verify=False)


def test_an_invalid_graph(copy: Path) -> None:
    (copy / "denoiser.onnx").write_bytes(b"\xff" * (copy / "denoiser.onnx").stat().st_size)
    with pytest.raises(BundleCorruptError, match="denoiser"):
        LipSyncEngine.load(copy, verify=False)


@pytest.mark.parametrize("name", ["denoiser.onnx", "audio_encoder.onnx"])
def test_a_bundle_without_one_of_its_graphs(copy: Path, name: str) -> None:
    edit(copy, lambda data: data["files"].pop(name))
    with pytest.raises(BundleCorruptError, match=name.removesuffix(".onnx")):
        LipSyncEngine.load(copy)


@pytest.mark.parametrize(
    ("schema", "fix"), [(4, "pip install --upgrade"), (2, "export"), ("3", "export"), (None, "export")]
)
def test_another_schema(copy: Path, schema: Any, fix: str) -> None:
    edit(copy, lambda data: data.update(schema=schema))
    with pytest.raises(BundleVersionError, match="expected: schema 3") as caught:
        Bundle.load(copy)
    assert fix in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"schema": 3}', "[" * 100_000, "\x00\xff"])
def test_an_invalid_manifest(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleCorruptError, match=r"manifest\.json"):
        Bundle.load(copy)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=3,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_to_the_manifest_loads_or_is_refused(tiny: Path, tmp_path: Path, data: st.DataObject) -> None:
    manifest = json.loads((tiny / MANIFEST).read_text())
    *way, last = data.draw(st.sampled_from([place for place in places(manifest) if place]))
    target = manifest
    for key in way:
        target = target[key]
    if data.draw(st.booleans()) and isinstance(target, dict):
        del target[last]
    else:
        target[last] = data.draw(JSON)
    try:
        parsed = parse_manifest(json.dumps(manifest), tmp_path)
        Bundle(tiny, parsed).check(hashes=False)
    except LipStreamError:
        pass
    else:
        assert isinstance(parsed.geometry.video_frames, int)
        assert isinstance(parsed.model, dict)
        assert all(isinstance(t, float) for t in parsed.t_list)


def test_unlisted_files(copy: Path) -> None:
    (copy / "README.md").write_text("a model card")
    (copy / ".gitattributes").write_text("*.bin filter=lfs")
    Bundle.load(copy)
    (copy / "more.bin").write_bytes(b"?")
    with pytest.raises(BundleCorruptError, match=r"more\.bin"):
        Bundle.load(copy)


def test_weights_that_the_manifest_does_not_list(copy: Path) -> None:
    edit(copy, lambda data: data["files"].pop("weights.bin"))
    with pytest.raises(BundleCorruptError, match=r"weights\.bin"):
        Bundle.load(copy)
    (copy / "weights.bin").rename(copy.parent / "weights.bin")
    with pytest.raises(BundleCorruptError, match=r"weights\.bin, which the manifest does not list|weights\.bin'\]"):
        Bundle.load(copy)


@pytest.mark.parametrize(
    "name", ["../weights.bin", "/etc/hostname", "a/b", "..", "C:\\x", "a\\b", ".hidden", "", "a\0b"]
)
def test_a_name_that_leaves_the_folder(copy: Path, name: str) -> None:
    edit(copy, lambda data: data["files"].update({name: {"bytes": 0, "sha256": ""}}))
    with pytest.raises(BundleCorruptError, match="not a plain file name"):
        Bundle.load(copy)


def test_a_hugging_face_cache_of_links_loads(copy: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for file in [*copy.iterdir()]:
        file.rename(blobs / f"{file.name}.blob")
        file.symlink_to(Path("..") / "blobs" / f"{file.name}.blob")
    LipSyncEngine.load(copy)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda d: d["geometry"].update(window=8), "whole chunks"),
        (lambda d: d["geometry"].update(latent_channels=8), "shape"),
        (lambda d: d["geometry"].update(num_layers=9), "missing|has no|modulation of denoiser"),
        (lambda d: d["geometry"].update(num_layers=7), "is unknown|modulation of denoiser"),
        (lambda d: d["geometry"].update(head_dim=10**9), "head_dim"),
        (lambda d: d["geometry"].update(crop_size=[64, 32]), "crops of"),
        (lambda d: d["geometry"].update(crop_box=[0, 0, 500, 560]), "canvas"),
        (lambda d: d["geometry"].update(crop_box=[0, 0, 0, 560]), "canvas"),
        (lambda d: d["geometry"].update(sequence="other"), "sequence"),
        (lambda d: d["audio"].update(lookback=5000), "shape"),
        (lambda d: d["audio"].update(features=65), "shape"),
        (lambda d: d["audio"].update(sample_rate=True), "sample_rate"),
        (lambda d: d.update(t_list=[0.5, 0.7, 0.0]), "times"),
    ],
)
def test_sizes_that_the_graphs_or_constants_do_not_have(copy: Path, change: Any, wrong: str) -> None:
    edit(copy, change)
    with pytest.raises(BundleCorruptError, match=wrong):
        Bundle.load(copy)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_bundle_changed_anywhere_runs_or_is_refused(tiny: Path, data: st.DataObject) -> None:
    """Bytes of one file changed, with matching hashes in the manifest: only typed errors, and no hang."""
    name = data.draw(st.sampled_from([name for name in FILES if name != "weights.bin"]))
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(tiny, copy, copy_function=os.link)
        content = bytearray((copy / name).read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            where = data.draw(st.integers(0, min(len(content), 4000) - 1))
            content[where] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        (copy / name).unlink()
        (copy / name).write_bytes(content)
        seen = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest = json.loads((copy / MANIFEST).read_text())
        manifest["files"][name] = seen
        (copy / MANIFEST).unlink()
        (copy / MANIFEST).write_text(json.dumps(manifest))
        with suppress(LipStreamError):
            LipSyncEngine.load(copy, threads=1)


def test_a_missing_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no bundle")
    for source in (tmp_path, tmp_path / "none", tmp_path / "file", "", "huge", "../tiny"):
        with pytest.raises(BundleNotFoundError, match="no bundle at"):
            Bundle.load(source)


def test_a_shipped_name_is_found_beside_a_folder_of_that_name(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert Bundle.load("tiny").path == SHIPPED / "tiny"


def test_the_header_is_what_the_onnx_package_reads(tiny: Path) -> None:
    for path in tiny.glob("*.onnx"):
        model, header = onnx.load(str(path), load_external_data=False), read_header(path)
        for found, values in ((header.inputs, model.graph.input), (header.outputs, model.graph.output)):
            assert [*found] == [value.name for value in values]
            for value in values:
                tensor = value.type.tensor_type
                shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
                assert found[value.name] == Tensor(tensor.elem_type, shape)
        assert header.external == {
            entry.value for x in model.graph.initializer for entry in x.external_data if entry.key == "location"
        }
        nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
        assert header.operators == {f"{n.domain}:{n.op_type}" if n.domain else n.op_type for n in nodes}


@pytest.mark.parametrize("kind", ["Loop", "If", "Scan", "ConstantOfShape", "PythonOp"])
def test_operators_that_no_student_needs(copy: Path, kind: str) -> None:
    """As a node of the graph, of a function, or of a graph inside a node."""
    path = copy / "audio_encoder.onnx"
    whole = path.read_bytes()
    node = helper.make_node(kind, ["samples"], ["endless"])
    inner = helper.make_node("Identity", ["samples"], ["o"], body=helper.make_graph([node], "inner", [], []))
    for where in ("graph", "function", "nested"):
        model = onnx.load_from_string(whole)
        if where == "function":
            opset = [helper.make_opsetid("", 23)]
            model.functions.append(helper.make_function("lipstream", "F", ["samples"], ["endless"], [node], opset))
        else:
            model.graph.node.append(node if where == "graph" else inner)
        data = model.SerializeToString()
        path.write_bytes(data)
        listed = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        edit(copy, lambda manifest, listed=listed: manifest["files"].update({path.name: listed}))
        with pytest.raises(BundleCorruptError, match=f"has the operators {kind}, which no student needs"):
            Bundle.load(copy)


class TestReplacing:
    """Writers and readers of one name at the same time."""

    def test_a_reader_always_sees_one_whole_bundle(self, tiny: Path, tmp_path: Path) -> None:
        target, manifest = tmp_path / "bundle", Bundle.load(tiny, verify=False).manifest
        errors: list[BaseException] = []
        stop = threading.Event()

        def write(number: int) -> None:
            try:
                for i in range(25):
                    with writing(target, manifest) as folder:
                        for name in ("a.bin", "b.bin"):
                            (folder / name).write_bytes(f"{number}-{i}".encode() * 1000)
            except BaseException as error:
                errors.append(error)

        def read() -> None:
            try:
                while not stop.is_set():
                    Bundle.load(target)
            except BaseException as error:
                errors.append(error)

        write(9)
        with ThreadPoolExecutor(4) as pool:
            reader = pool.submit(read)
            for job in [pool.submit(write, number) for number in range(3)]:
                job.result()
            stop.set()
            reader.result()
        assert not errors
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]

    def test_folders_of_a_killed_writer_are_removed(self, tiny: Path, tmp_path: Path) -> None:
        code = (
            "import os, signal; from lipstream.bundle import *; "
            f"m = Bundle.load({str(tiny)!r}).manifest\n"
            f"with writing({str(tmp_path / 'bundle')!r}, m) as folder:\n"
            "    (folder / 'half.bin').write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
        )
        subprocess.run([sys.executable, "-c", code], check=False)
        assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
        with writing(tmp_path / "bundle", Bundle.load(tiny).manifest) as folder:
            (folder / "weights.bin").write_bytes(b"whole")
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


class TestWriting:
    def manifest(self, tiny: Path) -> Manifest:
        return Bundle.load(tiny, verify=False).manifest

    def test_what_was_written_loads(self, tiny: Path, tmp_path: Path) -> None:
        for content in (b"one", b"two"):  # the second replaces the first
            with writing(tmp_path / "new" / "bundle", self.manifest(tiny)) as folder:
                (folder / "weights.bin").write_bytes(content)
            bundle = Bundle.load(tmp_path / "new" / "bundle")
            assert {*bundle.manifest.files} == {"weights.bin"}
            assert bundle.manifest.geometry == self.manifest(tiny).geometry
            assert bundle.file("weights.bin").read_bytes() == content
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["bundle"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_an_error_keeps_the_old_bundle(self, copy: Path, tiny: Path, error: type[BaseException]) -> None:
        def fail(folder: Path) -> None:
            (folder / "weights.bin").write_bytes(b"half")
            raise error

        with pytest.raises(error), writing(copy, self.manifest(tiny)) as folder:
            fail(folder)
        Bundle.load(copy)
        assert [path.name for path in copy.parent.iterdir()] == ["copy"]

    @pytest.mark.parametrize("manifest", ['{"name": "my web app"}', '{"schema": 1}', "{", ""])
    def test_a_folder_with_another_manifest_is_not_a_bundle(self, tiny: Path, tmp_path: Path, manifest: str) -> None:
        app = tmp_path / "app"
        app.mkdir()
        (app / MANIFEST).write_text(manifest)
        (app / "index.html").write_text("precious")
        with pytest.raises(OutputError), writing(app, self.manifest(tiny)):
            pytest.fail("nothing is to be written there")
        assert sorted(path.name for path in app.iterdir()) == ["index.html", MANIFEST]

    def test_a_bundle_with_other_files_is_not_replaced(self, copy: Path, tiny: Path) -> None:
        (copy / "notes.txt").write_text("precious")
        with pytest.raises(OutputError, match=r"notes\.txt"), writing(copy, self.manifest(tiny)):
            pytest.fail("nothing is to be written there")
        assert (copy / "notes.txt").exists()

    def test_invalid_output_paths(self, tiny: Path, tmp_path: Path) -> None:
        full = tmp_path / "full"
        full.mkdir()
        (full / "thesis.txt").write_text("precious")
        (tmp_path / "file").write_text("precious")
        for place in (full, tmp_path / "file", tmp_path / "file" / "bundle", Path("/proc/bundle")):
            with pytest.raises(OutputError), writing(place, self.manifest(tiny)):
                pytest.fail("nothing is to be written there")
        assert (full / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "precious"


def test_constants_are_what_the_graphs_take(tiny: Path) -> None:
    bundle = Bundle.load(tiny, verify=False)
    for name, value in bundle.constants.items():
        assert value.dtype == np.float32
        assert np.isfinite(value).all(), name
