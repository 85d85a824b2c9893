"""PyTorch's outputs for the probe's inputs, stored in the bundle for `lipstream verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from lipstream.bundle.golden import Arrays, Reference, key, probe_chunks, probe_inputs, relative_error, sample
from lipstream_models.layers import Conv2d, Conv3d, Linear
from lipstream_models.parts import StudentParts
from torch import Tensor, nn

from .bundle import graph_modules, manifest_of


def reference(
    parts: StudentParts, rounded: StudentParts, progress: Callable[[str], None] = lambda name: None
) -> Reference:
    """Outputs of the float32 `parts`, and the relative errors of `rounded`, the same parts in a lower precision.

    Args:
        progress: called with what is being computed.
    """
    manifest = manifest_of(parts)
    constants = {name: x.numpy() for name, x in parts.constants().items()}
    modules, others = (graph_modules(p, frugal=True) for p in (parts, rounded))
    outputs: Arrays = {}
    errors: dict[str, float] = {}
    for graph, module in modules.items():
        names = dict(zip(module.input_names, module.example(), strict=True))  # type: ignore[arg-type, operator]
        memories = {name: x.shape for name, x in names.items() if name.startswith("memory.")}
        for chunk in probe_chunks(manifest, graph):
            inputs = probe_inputs(manifest, constants, graph, memories, chunk)
            progress(f"reference of {graph} in chunk {chunk}")
            expected = _run(module, inputs)
            found = expected if _same_weights(module, others[graph]) else _run(others[graph], inputs)
            for name in expected:
                at = key(graph, name, chunk)
                outputs[at] = sample(expected[name])
                errors[at] = relative_error(sample(found[name]), outputs[at])
    return Reference(outputs, errors)


def _same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Whether both compute with the same tensors, as when published weights are bfloat16 already."""
    return all(x is y for x, y in zip(a.parameters(), b.parameters(), strict=True))


@torch.inference_mode()
def _run(module: nn.Module, inputs: Arrays) -> Arrays:
    """Outputs by name of a graph's module on inputs by name."""
    examples = zip(module.input_names, module.example(), strict=True)  # type: ignore[arg-type, operator]
    given = [torch.from_numpy(np.ascontiguousarray(inputs[name])).to(example) for name, example in examples]
    module.eval()
    with _products_in_float32(module):
        results = module(*given)
    results = results if isinstance(results, tuple) else (results,)
    return {name: x.float().numpy() for name, x in zip(module.output_names, results, strict=True)}  # type: ignore[arg-type]


@contextmanager
def _products_in_float32(module: nn.Module) -> Iterator[None]:
    """Compute products of bfloat16 in float32, and round the result.

    It is the same except for the order of the sum, which is float32 in both cases. A CPU without instructions for
    bfloat16 is 7 (matrices) to 28 times (convolutions) slower with it.
    """
    layers = [
        x for x in module.modules() if isinstance(x, Linear | Conv2d | Conv3d) and x.weight.dtype == torch.bfloat16
    ]
    for layer in layers:
        layer.forward = partial(_wide_product, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _wide_product(layer: Linear | Conv2d | Conv3d, x: Tensor) -> Tensor:
    weights = [p for p in (layer.weight, layer.bias) if p is not None]
    stored = [p.data for p in weights]
    try:
        for p in weights:
            p.data = p.data.float()
        return type(layer).forward(layer, x.bfloat16().float()).bfloat16()  # type: ignore[arg-type]
    finally:
        for p, data in zip(weights, stored, strict=True):
            p.data = data
