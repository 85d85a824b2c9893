"""The TensorRT plugin, compiled with TensorRT's headers, its kernels as CPU code, and driven as TensorRT drives it.

`host/plugin_driver.cpp` takes the class from its creator to `enqueue`; the rings are compared with NumPy in float64.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from test_kernels_on_cpu import ROOT, SANITIZERS, WITHOUT_BARRIERS, compiled

GUARD = 64
TYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8": ml_dtypes.float8_e4m3fn,
    "int64": np.int64,
    "int32": np.int32,
}
NAMES = ["k_ring", "v_ring", "k", "v", "k_weight", "slot", "cos_t", "sin_t", "cos_s", "sin_s", "k_scale", "v_scale"]
Array = NDArray[Any]


@dataclass
class Case:
    ring: str = "bfloat16"
    slots: int = 7
    frames: int = 3
    tokens: int = 4
    heads: int = 2
    head_dim: int = 128
    slot: int = 3
    eps: str = "0.01"
    offset: int = 0
    foreign: bool = False
    changed: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)

    @property
    def number(self) -> str:
        return "bfloat16" if self.ring == "float8" else self.ring

    def tensors(self) -> dict[str, Array]:
        rng = np.random.default_rng(7)
        t, s = self.head_dim // 2 - 2 * (self.head_dim // 6), 2 * (self.head_dim // 6)
        rows, width = self.frames * self.tokens, self.heads * self.head_dim

        def normal(dtype: str, *shape: int) -> Array:
            return rng.standard_normal(shape).astype(np.float32).astype(TYPES[dtype])

        angles = [rng.uniform(0, 6, shape) for shape in ((self.frames, t), (self.tokens, s))]
        ring = (1, self.heads, self.slots * self.tokens, self.head_dim)
        size = rng.uniform(0.02, 9, (rows, 1)).astype(TYPES[self.number])  # so that the norm matters, and its eps
        found = {
            "k_ring": normal(self.ring, *ring),
            "v_ring": normal(self.ring, *ring),
            "k": normal(self.number, 1, rows, width) * size,
            "v": normal(self.number, 1, rows, width),
            "k_weight": rng.uniform(0.2, 3, width).astype(np.float32),
            "slot": np.array([self.slot]),
        }
        for name, angle in zip("ts", angles, strict=True):
            found |= {f"cos_{name}": np.cos(angle, dtype=np.float32), f"sin_{name}": np.sin(angle, dtype=np.float32)}
        if self.ring == "float8":
            found |= {"k_scale": np.array(0.02, np.float32), "v_scale": np.array([0.004], np.float32)}
        for name, (dtype, shape) in self.changed.items():
            found[name] = np.resize(found.get(name, np.zeros(1)), shape).astype(TYPES[dtype])
        return {name: found[name] for name in NAMES if name in found}

    def expected(self) -> tuple[Array, Array]:
        """Both rings after the write, and what of them was written."""
        x = {name: value.astype(np.float64) for name, value in self.tensors().items()}
        number = TYPES[self.number]
        k = x["k"][0]
        k = k / np.sqrt((k * k).mean(-1, keepdims=True) + float(self.eps))
        k = k.astype(np.float32).astype(number).astype(np.float64) * x["k_weight"]
        pairs = k.reshape(-1, self.heads, self.head_dim).view(np.complex128)
        cos, sin = (
            np.concatenate([x[f"{f}_t"].repeat(self.tokens, 0), np.tile(x[f"{f}_s"], (self.frames, 1))], 1)
            for f in ("cos", "sin")
        )
        k = (pairs * (cos + 1j * sin)[:, None]).view(np.float64)
        written = np.stack([k, x["v"][0].reshape(k.shape)]).astype(np.float32).astype(number).astype(np.float64)
        if self.ring == "float8":  # beyond 448 ml_dtypes has NaN
            scales = np.stack([x["k_scale"], x["v_scale"].reshape(())])[:, None, None, None]
            written = np.clip(written / scales, -448, 448)
        rings = np.stack([self.tensors()["k_ring"], self.tensors()["v_ring"]])[:, 0]
        place = slice(self.slot * self.tokens, (self.slot + self.frames) * self.tokens)
        changed = np.zeros(rings.shape, bool)
        if 0 <= self.slot <= self.slots - self.frames:
            rings[:, :, place] = written.transpose(0, 2, 1, 3).astype(np.float32).astype(rings.dtype)
            changed[:, :, place] = True
        return rings, changed


Driver = Callable[[Case], tuple[str, Array]]


def drive(program: Path, case: Case, folder: Path) -> tuple[str, Array]:
    """What the driver printed, and both rings [2, H, F T, D]."""
    lines = ["eps " + case.eps, f"offset {case.offset}"] + ["foreign"] * case.foreign
    tensors = case.tensors()
    for i, value in enumerate(tensors.values()):
        dtype = next(name for name, found in TYPES.items() if value.dtype == found)
        lines.append(" ".join(map(str, (dtype, *value.shape))))
        (folder / f"{i}.bin").write_bytes(value.tobytes())
    (folder / "case.txt").write_text("\n".join(lines) + "\n")
    done = subprocess.run([program, folder], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "fault" not in done.stdout, done.stdout
    rings = []
    for i, name in enumerate(("k_ring", "v_ring")):
        if not (path := folder / f"{i}.out").exists():
            continue
        content = path.read_bytes()
        start, size = GUARD + case.offset, tensors[name].nbytes
        guards = content[:start] + content[start + size :]
        assert set(guards) == {0x5A}, f"written outside {name}"
        rings.append(np.frombuffer(content[start : start + size], tensors[name].dtype).reshape(tensors[name].shape[1:]))
    return done.stdout, np.array(rings) if len({ring.shape for ring in rings}) == 1 else np.zeros(0)


@pytest.fixture(scope="module", params=[[], SANITIZERS], ids=["plain", "sanitized"])
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    program = compiled(tmp_path_factory.mktemp("plugin"), "plugin_driver", *request.param)
    return lambda case: drive(program, case, tmp_path_factory.mktemp("case"))


def bits(x: Array) -> Array:
    return x.view(f"u{x.dtype.itemsize}")


def check(case: Case, found: Array) -> None:
    expected, changed = case.expected()
    assert found.shape == expected.shape
    np.testing.assert_array_equal(bits(found)[~changed], bits(expected)[~changed], "neighbours of what is written")
    np.testing.assert_array_equal(bits(found[1]), bits(expected[1]), "V is stored as it is")
    # A sum in another order may move K to its neighbour when it is rounded, twice; rotated, by as much of its pair.
    a, b = (x[0].astype(np.float64) for x in (found, expected))
    pair = np.hypot(b[..., ::2], b[..., 1::2]).repeat(2, -1)
    step = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1.6e-2, "float8": 0.126}[case.ring]
    assert (np.abs(a - b) <= step * pair)[changed[0]].all()
    if case.ring != "float32":
        assert (a == b)[changed[0]].mean() > 0.99


SIZES = {
    "window 7, sink 1": {},
    "no sink": {"slots": 6},
    "first slot": {"slot": 0},
    "last slot": {"slot": 4},
    "a row of 14B": {"tokens": 2, "heads": 40},
    "odd sizes": {"tokens": 3, "heads": 3, "head_dim": 14},
    "one pair": {"tokens": 1, "heads": 1, "head_dim": 2},
    "a head wider than a block": {"frames": 1, "slots": 2, "slot": 1, "head_dim": 1100, "tokens": 1},
    "misaligned": {"offset": 8},
    "the whole ring": {"slots": 3, "slot": 0},
}


@pytest.mark.parametrize("ring", ["float32", "float16", "bfloat16", "float8"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_chunk_is_normalised_rotated_and_written(driver: Driver, ring: str, sizes: dict[str, Any]) -> None:
    case = Case(ring, **sizes)
    printed, rings = driver(case)
    assert printed.split("\n")[:-1] == ["create: ok", "build: ok", "shapes: ok", "enqueue: ok", "launches: 1"]
    check(case, rings)
    if ring == "float8":
        largest = np.abs(rings[case.expected()[1]].astype(np.float32)).max()
        assert largest == 448 or case.head_dim == 2, "no value was limited"


@pytest.mark.parametrize("slot", [-1, 5, 2**40])
@pytest.mark.parametrize("ring", ["bfloat16", "float8"])
def test_a_slot_outside_the_ring_writes_nothing(driver: Driver, ring: str, slot: int) -> None:
    case = Case(ring, slot=slot)
    printed, rings = driver(case)
    assert "enqueue: ok" in printed
    np.testing.assert_array_equal(bits(rings), bits(case.expected()[0]))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("v_ring", ("bfloat16", (1, 2, 24, 128)), "v_ring is of shape [1, 2, 24, 128], expected [1, 2, 28, 128]"),
        ("k", ("bfloat16", (1, 12, 128)), "k is of shape [1, 12, 128], expected [1, 12, 256]"),
        ("v", ("bfloat16", (1, 11, 256)), "v is of shape [1, 11, 256], expected [1, 12, 256]"),
        ("k_weight", ("float32", (128,)), "k_weight is of shape [128], expected [256]"),
        ("slot", ("int64", (2,)), "slot is of shape [2], expected [1]"),
        ("sin_t", ("float32", (3, 21)), "sin_t is of shape [3, 21], expected [3, 22]"),
        ("cos_s", ("float32", (4, 41)), "cos_s is of shape [4, 41], expected [any, 42]"),
        ("k", ("float32", (1, 12, 256)), "k is float32, expected bfloat16"),
        ("slot", ("float32", (1,)), "slot is float32, expected int64"),
        ("k_weight", ("bfloat16", (256,)), "k_weight is bfloat16, expected float32"),
        ("k_ring", ("int32", (1, 2, 28, 128)), "k_ring is another type, expected float32, float16, bfloat16"),
        ("k_scale", ("float32", (1,)), "11 inputs, expected 10 with a ring of bfloat16"),
    ],
)
def test_wrong_tensors_are_refused_with_a_message(
    driver: Driver, name: str, given: tuple[str, tuple[int, ...]], message: str
) -> None:
    case = Case(changed={name: given})
    printed, rings = driver(case)
    assert f"log: KVRingWrite: {message}" in printed
    assert "shapes: refused" in printed
    assert "enqueue: refused" in printed
    assert "launches: 0" in printed
    if name not in ("k_ring", "v_ring"):
        np.testing.assert_array_equal(bits(rings[0]), bits(case.tensors()["k_ring"][0]))


def test_an_output_at_another_address_is_refused(driver: Driver) -> None:
    printed, _ = driver(Case(foreign=True))
    assert "the output of v_ring is at another address than the input, expected the same" in printed
    assert "enqueue: refused" in printed
    assert "launches: 0" in printed


@pytest.mark.parametrize("eps", ["", "-1", "1e39", "1e-6 1e-6"])
def test_a_missing_or_wrong_eps_is_refused(driver: Driver, eps: str) -> None:
    printed, _ = driver(Case(eps=eps))
    assert "log: KVRingWrite: the attribute eps is missing or not one, expected one float32 from 0 up" in printed
    assert "create: refused" in printed


def test_a_missing_barrier_is_detected(tmp_path: Path) -> None:
    program = compiled(tmp_path, "plugin_driver", WITHOUT_BARRIERS)
    case = Case()
    _, rings = drive(program, case, tmp_path)
    with pytest.raises(AssertionError):
        check(case, rings)


def test_the_library_exports_only_what_tensorrt_loads(tmp_path: Path) -> None:
    library = tmp_path / "plugin.o"
    source = ROOT / "csrc" / "plugin" / "ring_plugin.cpp"
    compiled(tmp_path, source, "-Werror", "-fvisibility=hidden", "-fPIC", "-c", to=library)
    symbols = subprocess.run(["nm", library], capture_output=True, text=True, check=True).stdout
    assert {line.split()[-1] for line in symbols.splitlines() if " T " in line} >= {"getCreators", "setLoggerFinder"}
