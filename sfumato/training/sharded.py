"""A network whose weights, gradients, moments and averages are shared out among processes (FSDP), gathered to compute.

``accelerate launch --use_fsdp`` asks for it. The sharding is torch's own ``fully_shard`` (Zhao et al., 2023): it works
on every device that has collectives, CPUs among them, and leaves parameters their names.
"""

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def asked() -> bool:
    """Whether the launcher asks for it. From now on accelerate does not hear of it, which would wrap in its own way."""
    if os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1"):
        os.environ["SFUMATO_FSDP"] = "1"
    return "SFUMATO_FSDP" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def share_out(network: nn.Module, device: torch.device, world: int) -> None:
    """In place; all processes have to hold the same weights."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(network, mesh=init_device_mesh(device.type, (world,)))


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of every tensor, in every process, which all have to ask together."""
    return {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor, shared out as ``model`` is."""
    if not isinstance(model, DTensor) or tensor.shape != model.shape:
        return tensor
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)
