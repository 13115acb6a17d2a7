"""What an autoencoder is trained for: pictures that come back, look right, and have well-behaved latents.

Rombach et al., 2022, appendix G; Esser et al., 2021, eqs. 4-7. All terms are means over the values of a picture, so
that a weight means the same at every size.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import ConfigError
from sfumato.models.latents import Gaussian
from sfumato.objectives.loss import Loss


class Distance(Protocol):
    """How different two pictures look."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1], twice -> [B]."""


@dataclass(frozen=True)
class AutoencoderLossConfig:
    """Weights of the terms; 0 leaves a term out."""

    l1: Annotated[float, "of the mean absolute error"] = 1.0
    l2: Annotated[float, "of the mean squared error"] = 0.0
    perceptual: Annotated[float, "of the distance in a network's states, see autoencoder.perceptual_weights"] = 0.0
    kl: Annotated[float, "of the latents' divergence from a standard normal, in nats a value of the picture"] = 1e-6
    commitment: Annotated[float, "VQ: how firmly the encoder is held to the code book"] = 0.25
    adversarial: Annotated[float, "of the discriminator's judgement"] = 0.0
    adversarial_start: Annotated[int, "optimiser steps before the discriminator has a say"] = 0
    adversarial_loss: Annotated[Literal["hinge", "logistic"], "what the discriminator minimises"] = "hinge"
    adaptive: Annotated[bool, "balance the judgement with the rest by their gradients at the last layer"] = True

    def __post_init__(self) -> None:
        for name in ("l1", "l2", "perceptual", "kl", "commitment", "adversarial", "adversarial_start"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: must not be negative.")
        if not self.l1 + self.l2 + self.perceptual:
            raise ConfigError("l1, l2 and perceptual are all 0: nothing asks for the picture to come back.")


def reconstruction(
    config: AutoencoderLossConfig, pictures: Tensor, output: Tensor, latents: Gaussian | Tensor,
    distance: Distance | None = None,
) -> Loss:
    """All terms but the adversarial one.

    Args:
        pictures, output: [B, 3, H, W], about [-1, 1].
        latents: the encoder's Gaussian; or, of a VQ autoencoder, the scalar loss of its code book
            (``codebook + commitment * commit``, Esser et al., eq. 4).
        distance: needed where ``perceptual`` is not 0.
    """
    pictures, output = pictures.float(), output.float()
    absolute = (pictures - output).abs().flatten(1).mean(1)
    squared = (pictures - output).square().flatten(1).mean(1)
    each = config.l1 * absolute + config.l2 * squared
    # Of pictures in [0, 1], as PSNR is reported.
    psnr = -10.0 * (squared.detach() / 4.0).clamp(min=1e-10).log10()
    parts = {"l1": absolute.mean().detach(), "l2": squared.mean().detach(), "psnr": psnr.mean()}
    if config.perceptual:
        if distance is None:
            raise ConfigError("perceptual is not 0, but there is no network to measure it with: give its weights.")
        looks = distance(pictures, output)
        parts["perceptual"] = looks.mean().detach()
        each = each + config.perceptual * looks
    if isinstance(latents, Gaussian):
        divergence = latents.kl() / pictures[0].numel()
        parts["kl"] = divergence.mean().detach()
        if config.kl:
            each = each + config.kl * divergence
    else:
        parts["codes"] = latents.detach()
        each = each + latents
    return Loss(each.mean(), parts, each.detach())


def adversarial(
    config: AutoencoderLossConfig, discriminator: nn.Module, output: Tensor, rest: Tensor, last_layer: Tensor, step: int
) -> Loss | None:
    """What the autoencoder minimises of the discriminator's judgement; None before ``adversarial_start``.

    Args:
        output: [B, 3, H, W], what the decoder gave.
        rest: the total of ``reconstruction``, against which the judgement is balanced.
        last_layer: the decoder's last weight.
    """
    if not config.adversarial or step < config.adversarial_start:
        return None
    each = -discriminator(output).float().flatten(1).mean(1)
    weight = torch.tensor(config.adversarial, device=output.device)
    if config.adaptive and torch.is_grad_enabled():  # Esser et al., 2021, eq. 7
        of_rest = torch.autograd.grad(rest, last_layer, retain_graph=True)[0].float().norm()
        of_judgement = torch.autograd.grad(each.mean(), last_layer, retain_graph=True)[0].float().norm()
        weight = weight * (of_rest / (of_judgement + 1e-4)).clamp(0.0, 1e4).detach()
    parts = {"adversarial": each.mean().detach(), "adversarial_weight": weight}
    return Loss(weight * each.mean(), parts, each.detach())


def discrimination(
    config: AutoencoderLossConfig, discriminator: nn.Module, pictures: Tensor, output: Tensor
) -> Loss:
    """What the discriminator minimises: it should tell pictures from reconstructions, patch by patch."""
    judged = discriminator(torch.cat([pictures, output.detach()])).float().flatten(1)
    real, fake = judged.chunk(2)
    if config.adversarial_loss == "hinge":
        each = 0.5 * (F.relu(1.0 - real).mean(1) + F.relu(1.0 + fake).mean(1))
    else:
        each = 0.5 * (F.softplus(-real).mean(1) + F.softplus(fake).mean(1))
    parts = {"discriminator": each.mean().detach(), "real": real.mean().detach(), "fake": fake.mean().detach()}
    return Loss(each.mean(), parts, each.detach())
