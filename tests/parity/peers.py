"""How a network is compared with its peer: the same random weights in both, the same input, the relative difference."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.config import to_dict


def known_to_peers(config: Any) -> dict[str, Any]:
    """A config's fields as the peer's class takes them: without those that are this project's own."""
    return {key: value for key, value in to_dict(config).items() if key not in getattr(config, "own", ())}


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter, norms and biases too, so that a forgotten one shows.

    Matrices and kernels keep the variance of what passes through them; norms stay near 1, biases near 0.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.empty_like(parameter).normal_(generator=generator)
            if parameter.ndim >= 2:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.1 * noise + parameter.mean().round().clamp(0, 1))
    return module.eval()


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs|, in float64."""
    assert ours.shape == theirs.shape
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def parameter_count(module: nn.Module) -> int:
    """All parameters of a module, which may be on the meta device."""
    return sum(parameter.numel() for parameter in module.parameters())
