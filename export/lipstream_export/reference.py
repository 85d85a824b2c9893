"""PyTorch's outputs for the probe's inputs, stored in the bundle for `lipstream verify`."""

from __future__ import annotations

import numpy as np
import torch
from lipstream.bundle.golden import Arrays, Reference, key, probe_chunks, probe_inputs, relative_error, sample
from lipstream_models.parts import StudentParts
from torch import nn

from .bundle import graph_modules, manifest_of
from .precision.products import products_in_float32
from .progress import Progress, unseen


def reference(parts: StudentParts, rounded: StudentParts, progress: Progress = unseen) -> Reference:
    """Outputs of the float32 `parts`, and the relative errors of `rounded`, the same parts in a lower precision."""
    manifest = manifest_of(parts)
    constants = {name: x.numpy() for name, x in parts.constants().items()}
    modules, others = (graph_modules(p, frugal=True) for p in (parts, rounded))
    outputs: Arrays = {}
    errors: dict[str, float] = {}
    calls = {graph: probe_chunks(manifest, graph) for graph in modules}
    done, total = 0, sum(map(len, calls.values()))
    for graph, module in modules.items():
        names = dict(zip(module.input_names, module.example(), strict=True))  # type: ignore[arg-type, operator]
        memories = {name: x.shape for name, x in names.items() if name.startswith("memory.")}
        for chunk in calls[graph]:
            progress("reference", done, total, f"{graph} in chunk {chunk}")
            done += 1
            inputs = probe_inputs(manifest, constants, graph, memories, chunk)
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
    with products_in_float32(module):
        results = module(*given)
    results = results if isinstance(results, tuple) else (results,)
    return {name: x.float().numpy() for name, x in zip(module.output_names, results, strict=True)}  # type: ignore[arg-type]
