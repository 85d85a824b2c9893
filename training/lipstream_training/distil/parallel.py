"""Ranks: joining those that torchrun started, FSDP2 and adapters, means over ranks. A single process is one rank."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lipstream.errors import ConfigError
from lipstream_models import CausalDiT
from lipstream_models.released.student import LORA_SCALE, Adapters
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

ADAPTED = r".*\.(q|k|v|o|ffn\.0|ffn\.2)"
"""Layers that get adapters."""
TRAINED_WHOLE = ("audio_proj", "audio_cond_projs", "patch_embedding")
"""Parts trained beside the adapters."""


def start() -> torch.device:
    """Join the other ranks, where torchrun started several; returns this rank's device."""
    cuda = torch.cuda.is_available()
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    if not cuda:
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cuda", torch.cuda.current_device())


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def mesh(device: torch.device) -> DeviceMesh | None:
    """All ranks in a row; None for one process."""
    return init_device_mesh(device.type, (world(),)) if world() > 1 else None


def shard(model: CausalDiT, over: DeviceMesh | None, precision: str) -> None:
    """FSDP2: each block is a unit, the rest belongs to the root. Parameters and their gradients stay in float32."""
    if over is None:
        return
    products = torch.bfloat16 if precision == "bf16" else torch.float32
    policy = MixedPrecisionPolicy(param_dtype=products, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=over, mp_policy=policy)
        register_fsdp_forward_method(block, "text_kv")
    fully_shard(model, mesh=over, mp_policy=policy)
    register_fsdp_forward_method(model, "text_kv")


@contextmanager
def products(device: torch.device, precision: str) -> Iterator[None]:
    """Autocast to bfloat16 on a single rank; on several, FSDP casts."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16" and world() == 1):
        yield


def adapt(model: CausalDiT, rank: int, alpha: int, adapters: Adapters | None = None) -> None:
    """Freeze `model` but for `TRAINED_WHOLE` and adapters (LoRA, by peft) on `ADAPTED`.

    Args:
        adapters: A and B to go on from; layers without one start with B = 0, which changes nothing.

    Raises:
        ConfigError: `adapters` are of another rank, or on other layers.
    """
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=ADAPTED), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith(TRAINED_WHOLE))
    for layer, (a, b) in (adapters or {}).items():
        if a.shape[0] != rank or not re.fullmatch(ADAPTED, layer):
            raise ConfigError(
                f"an adapter of rank {a.shape[0]} on {layer} cannot be continued",
                expected=f"rank {rank}, on q, k, v, o and the feed-forward",
                fix=f"--lora {a.shape[0]}, or --continue-adapters false",
            )
        module: Any = model.get_submodule(layer)
        with torch.no_grad():
            module.lora_A.default.weight.copy_(a)
            module.lora_B.default.weight.copy_(b * (LORA_SCALE * rank / alpha))


def delta(model: CausalDiT, rank: int, alpha: int) -> dict[str, Tensor]:
    """What `adapt` lets train, as upstream's training deltas have it: A, B with their scale 0.5, whole parts."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = alpha / rank / LORA_SCALE if "lora_B" in name else 1.0
            found[name] = parameter.detach() * factor
    return found


def merged(model: CausalDiT) -> dict[str, Tensor]:
    """The weights with adapters merged, under the names of a model without adapters."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if hasattr(module, "base_layer"):
            base = module.base_layer
            delta = module.get_delta_weight("default") if hasattr(module, "get_delta_weight") else 0
            found[f"{name}.weight"] = (base.weight + delta).detach()
            if base.bias is not None:
                found[f"{name}.bias"] = base.bias.detach()
    for name, x in model.state_dict().items():
        if "base_layer" not in name and "lora_" not in name:
            found[name] = x.detach()
    return found


def whole(x: Tensor) -> Tensor:
    """A sharded tensor on every rank, or the tensor itself."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def part(x: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, in its memory, or the tensor itself."""
    return x.to_local() if hasattr(x, "to_local") else x


def mean_over_ranks(x: Tensor) -> Tensor:
    if world() > 1:
        x = x.clone()
        dist.all_reduce(x)
        x = x / world()
    return x


def parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained."""
    return [p for p in module.parameters() if p.requires_grad]
