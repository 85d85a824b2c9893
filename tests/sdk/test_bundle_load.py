"""A bundle that is not whole is refused, each way with its own error; writing one is all or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lipstream import LipSyncEngine
from lipstream.bundle import MANIFEST, SHIPPED, Bundle, Manifest, writing
from lipstream.errors import (
    BackendError,
    BundleCorruptError,
    BundleNotFoundError,
    BundleVersionError,
    LipStreamError,
    LipStreamInternalError,
    OutputError,
)

FILES = (
    "audio_encoder.onnx",
    "constants.safetensors",
    "context.onnx",
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
    """Let `change` alter what the manifest of `bundle` says."""
    data = json.loads((bundle / MANIFEST).read_text())
    change(data)
    (bundle / MANIFEST).write_text(json.dumps(data))


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_what_is_shipped_is_whole_and_says_what_it_is(tiny: Path) -> None:
    bundle = Bundle.load(tiny)
    assert {*FILES} == {*bundle.manifest.files}
    assert bundle.manifest.geometry.crop_size == (96, 96)
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


def test_damage_that_nobody_looked_for_is_still_a_typed_error(copy: Path) -> None:
    (copy / "constants.safetensors").write_bytes(b"\xff" * (copy / "constants.safetensors").stat().st_size)
    with pytest.raises(BundleCorruptError, match="constants"):
        LipSyncEngine.load(copy, verify=False)


def test_a_graph_that_is_none(copy: Path) -> None:
    (copy / "denoiser.onnx").write_bytes(b"\xff" * (copy / "denoiser.onnx").stat().st_size)
    with pytest.raises(BackendError, match="denoiser"):
        LipSyncEngine.load(copy, verify=False)


@pytest.mark.parametrize("name", ["denoiser.onnx", "audio_encoder.onnx"])
def test_a_bundle_without_one_of_its_graphs(copy: Path, name: str) -> None:
    edit(copy, lambda data: data["files"].pop(name))
    with pytest.raises(BundleCorruptError, match=name.removesuffix(".onnx")):
        LipSyncEngine.load(copy)


@pytest.mark.parametrize(
    ("schema", "fix"), [(2, "pip install --upgrade"), (0, "export"), ("2", "export"), (None, "export")]
)
def test_another_schema(copy: Path, schema: Any, fix: str) -> None:
    edit(copy, lambda data: data.update(schema=schema))
    with pytest.raises(BundleVersionError, match="expected: schema 1") as caught:
        Bundle.load(copy)
    assert fix in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"schema": 1}', "\x00\xff"])
def test_a_manifest_that_is_none(copy: Path, text: str) -> None:
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
        parsed = Manifest.parse(json.dumps(manifest), tmp_path)
        Bundle(tiny, parsed).check(hashes=False)
    except LipStreamError:
        pass
    else:
        assert isinstance(parsed.geometry.video_frames, int)
        assert isinstance(parsed.model, dict)
        assert all(isinstance(t, float) for t in parsed.t_list)


def test_nothing_there(tmp_path: Path) -> None:
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


class TestWriting:
    def manifest(self, tiny: Path) -> Manifest:
        return Bundle.load(tiny, verify=False).manifest

    def test_what_was_written_loads(self, tiny: Path, tmp_path: Path) -> None:
        for content in (b"one", b"two"):  # the second replaces the first
            with writing(tmp_path / "new" / "bundle", self.manifest(tiny)) as folder:
                (folder / "constants.safetensors").write_bytes(content)
            bundle = Bundle.load(tmp_path / "new" / "bundle")
            assert {*bundle.manifest.files} == {"constants.safetensors"}
            assert bundle.manifest.geometry == self.manifest(tiny).geometry
            assert bundle.file("constants.safetensors").read_bytes() == content
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["bundle"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_an_error_leaves_what_was_there(self, copy: Path, tiny: Path, error: type[BaseException]) -> None:
        def fail(folder: Path) -> None:
            (folder / "weights.bin").write_bytes(b"half")
            raise error

        with pytest.raises(error), writing(copy, self.manifest(tiny)) as folder:
            fail(folder)
        Bundle.load(copy)
        assert [path.name for path in copy.parent.iterdir()] == ["copy"]

    def test_places_that_cannot_be(self, tiny: Path, tmp_path: Path) -> None:
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
