"""Would int8 make the CPU backend faster?

ONNX Runtime's static quantisation (QDQ, per-channel int8 weights, uint8 activations, ranges from dubbing the sample)
of the products of each graph, against the float32 graph: milliseconds of a call on one thread, measured in turns on the
same inputs, and the relative error of the first output. The CPU's instructions for it are printed, too. It passes if
every quantised graph runs; what follows from the numbers is in docs/precision.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from lipstream import LipSyncEngine, samples
from lipstream.bundle import Bundle
from lipstream.bundle.golden import relative_error
from lipstream.media import read_audio
from numpy.typing import NDArray
from onnx import inliner
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from tqdm import tqdm

from .common import main, parser, spread, write

GRAPHS = ("denoiser", "video_decoder")
PRODUCTS = ["MatMul", "Gemm", "Conv"]
CALIBRATION = 8
"""Calls for calibration, with the window full."""
INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")
Feed = dict[str, NDArray[Any]]


class Calls(CalibrationDataReader):  # type: ignore[misc]
    """Recorded inputs, for the calibration."""

    def __init__(self, feeds: list[Feed]) -> None:
        self._feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


class Recorder:
    """A graph that records the inputs of its calls."""

    def __init__(self, graph: ort.InferenceSession) -> None:
        self._graph = graph
        self.feeds: list[Feed] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._graph, name)

    def io_binding(self) -> Any:
        recorder, binding = self, self._graph.io_binding()
        feed: Feed = {}

        class Binding:
            _iobinding = binding._iobinding

            def bind_ortvalue_input(self, name: str, value: ort.OrtValue) -> None:
                feed[name] = value.numpy().copy()
                binding.bind_ortvalue_input(name, value)

            def __getattr__(self, name: str) -> Any:
                return getattr(binding, name)

        recorder.feeds.append(feed)
        return Binding()


def recorded(bundle: str) -> dict[str, list[Feed]]:
    """Inputs of every call of a dub of the sample, by graph; for the passes only those with a full window."""
    engine = LipSyncEngine.load(bundle, backend="onnxruntime", threads=1)
    graphs = engine.backend.graphs  # type: ignore[attr-defined]
    recorders = {name: Recorder(graphs[name]) for name in GRAPHS}
    graphs |= recorders
    sound, rate = read_audio(samples.SPEECH)
    with engine.session(samples.FACE) as session:
        session.push_audio(sound[: 6 * rate], rate)
        session.flush()
        for _ in session:
            pass
    window = engine.manifest.geometry.window
    return {
        name: [feed for feed in recorder.feeds if len(feed.get("k.0", range(window))) == window]
        for name, recorder in recorders.items()
    }


def compare(path: Path, feeds: list[Feed], repeats: int) -> dict[str, Any]:
    """One graph in float32 and in int8."""
    with tempfile.TemporaryDirectory() as folder:
        plain, int8 = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        onnx.save(inliner.inline_local_functions(onnx.load(str(path))), str(plain))
        quantize_static(
            str(plain),
            str(int8),
            Calls(feeds[:CALIBRATION]),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=PRODUCTS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        graphs = [ort.InferenceSession(str(x), options, providers=["CPUExecutionProvider"]) for x in (plain, int8)]
    outputs = [graph.run(None, feeds[-1])[0] for graph in graphs]
    seconds: list[list[float]] = [[], []]
    for _ in range(repeats):
        for graph, times in zip(graphs, seconds, strict=True):
            begun = time.perf_counter()
            graph.run(None, feeds[-1])
            times.append(time.perf_counter() - begun)
    float32, quantised = (1000 * np.array(times) for times in seconds)
    return {
        "output": graphs[0].get_outputs()[0].name,
        "relative_error": relative_error(outputs[1], outputs[0]),
        "fp32_ms": spread(float32),
        "int8_ms": spread(quantised),
        "times_faster": spread(float32 / quantised),
    }


def instructions() -> list[str]:
    """The `INSTRUCTIONS` that the CPU supports. Linux."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return [name for name in INSTRUCTIONS if name in flags]


def run(args: argparse.Namespace) -> bool:
    bundle = Bundle.load(args.bundle)
    feeds = recorded(args.bundle)
    results: dict[str, Any] = {"instructions": instructions(), "graphs": {}}
    for name in tqdm(GRAPHS, unit="graph", disable=None):
        results["graphs"][name] = found = compare(bundle.file(f"{name}.onnx"), feeds[name], args.repeats)
        print(
            f"{name}: {found['fp32_ms']['median']:.1f} ms in float32, {found['int8_ms']['median']:.1f} in int8, "
            f"{found['times_faster']['median']:.2f} times as fast; {found['output']} differs by "
            f"{found['relative_error']:.3f}"
        )
    print(f"instructions: {', '.join(results['instructions'])}")
    write(args.json, "int8", args, results)
    return True


def build_parser() -> argparse.ArgumentParser:
    options = parser("int8", __doc__, least={"repeats": 3})
    options.add_argument("--repeats", type=int, default=100, help="calls of each graph (default 100)")
    return options


if __name__ == "__main__":
    sys.exit(main(run, build_parser().parse_args()))
