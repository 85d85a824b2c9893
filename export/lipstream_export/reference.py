"""What the graphs of a bundle ought to give for the probe's inputs, by PyTorch; stored for `lipstream verify`."""

from __future__ import annotations

import numpy as np
import torch
from lipstream.bundle import Manifest
from lipstream.probe import Arrays, Reference, probe_inputs, relative_error, sample
from lipstream_training.models import StudentConfig

from .bundle import Parts, graph_modules


def reference(parts: Parts, rounded: Parts, config: StudentConfig, manifest: Manifest) -> Reference:
    """Outputs of the float32 `parts`, and how far off the same in a lower precision, `rounded`, are."""
    constants = {name: x.numpy() for name, x in parts.constants().items()}
    modules, others = graph_modules(parts, config), graph_modules(rounded, config)
    outputs: Arrays = {}
    errors: dict[str, float] = {}
    for graph, module in modules.items():
        names = dict(zip(module.input_names, module.example(), strict=True))  # type: ignore[arg-type, operator]
        memories = {name: x.shape for name, x in names.items() if name.startswith("memory.")}
        inputs = probe_inputs(manifest, constants, graph, memories)
        found, expected = _run(others[graph], inputs), _run(module, inputs)
        for name in expected:
            key = f"{graph}/{name}"
            outputs[key] = sample(expected[name])
            errors[key] = relative_error(sample(found[name]), outputs[key])
    return Reference(outputs, errors)


@torch.inference_mode()
def _run(module: torch.nn.Module, inputs: Arrays) -> Arrays:
    """The graph's module, called as the graph is."""
    examples = zip(module.input_names, module.example(), strict=True)  # type: ignore[arg-type, operator]
    given = [torch.from_numpy(np.ascontiguousarray(inputs[name])).to(example) for name, example in examples]
    results = module.eval()(*given)
    results = results if isinstance(results, tuple) else (results,)
    return {name: x.float().numpy() for name, x in zip(module.output_names, results, strict=True)}  # type: ignore[arg-type]
