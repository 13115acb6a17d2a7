"""diffusers' networks of true size with random weights, the same in every process, and how much a call of them does."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Made
from sfumato.core.config import to_dict
from sfumato.engine.meta import META
from sfumato.engine.trace import trace, weights
from sfumato.models.autoencoder import SD_VAE, AutoencoderConfig
from sfumato.models.unet import SD1, SDXL, UNetConfig

TINY_UNET = replace(SD1, block_out_channels=(64, 64, 128, 128))
UNETS = {"sd15": SD1, "sdxl": SDXL, "tiny": TINY_UNET}
VAES = {"sd15": SD_VAE, "tiny": replace(SD_VAE, block_out_channels=(32, 32, 64, 64))}
TITLES = {"sd15": "SD1.5", "sdxl": "SDXL", "tiny": "tiny"}
"""By the model's name. ``tiny`` is for trying a benchmark in seconds; what it finds is of no use."""


@dataclass(frozen=True)
class Ask:
    """One question to a U-Net, for both guidance halves.

    Attributes:
        x: [1, 4, h, w], noisy latents.
        time: of the 1,000.
        context: [2, 77, C], states of two prompts.
        pooled, sizes: [2, 1280] and [2, 6], of XL; else None.
    """

    x: Tensor
    time: int
    context: Tensor
    pooled: Tensor | None
    sizes: Tensor | None

    def theirs(self, pictures: int = 1, device: torch.device | None = None) -> dict[str, Any]:
        """diffusers' arguments: 2 rows a picture."""

        def rows(of_two: Tensor) -> Tensor:
            return of_two.to(device).repeat(pictures, *[1] * (of_two.ndim - 1))

        found: dict[str, Any] = {
            "sample": rows(self.x.repeat(2, 1, 1, 1)), "timestep": self.time,
            "encoder_hidden_states": rows(self.context),
        }  # fmt: skip
        if self.pooled is not None and self.sizes is not None:
            found["added_cond_kwargs"] = {"text_embeds": rows(self.pooled), "time_ids": rows(self.sizes)}
        return found


def ask(config: UNetConfig, size: int, seed: int = 1, time: int = 500) -> Ask:
    """For latents of ``size`` x ``size``."""
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(1, config.in_channels, size, size, generator=drawn)
    context = torch.randn(2, 77, config.cross_attention_dim, generator=drawn)
    if config.addition_embed_type is None:
        return Ask(x, time, context, None, None)
    pixels = 8.0 * size
    sizes = torch.tensor([[pixels, pixels, 0.0, 0.0, pixels, pixels]] * 2)
    return Ask(x, time, context, torch.randn(2, 1280, generator=drawn), sizes)


def unet(config: UNetConfig) -> Any:
    """A ``UNet2DConditionModel``."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    known = {key: value for key, value in to_dict(config).items() if value is not None}
    built: Any = UNet2DConditionModel(**known)  # type: ignore[no-untyped-call]
    return built.eval().requires_grad_(False)


def autoencoder(config: AutoencoderConfig) -> Any:
    """An ``AutoencoderKL``."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    known = {key: value for key, value in to_dict(config).items() if key not in config.own and value is not None}
    built: Any = AutoencoderKL(**known)  # type: ignore[no-untyped-call]
    return built.eval().requires_grad_(False)


def latent(config: AutoencoderConfig, size: int) -> Tensor:
    """[1, C, size, size]."""
    return torch.randn(1, config.latent_channels, size, size, generator=torch.Generator().manual_seed(1))


def made_unet(config: UNetConfig, size: int, compiled: bool = False) -> Made:
    """A subject: diffusers as it comes, or through ``torch.compile``."""
    network, asked = unet(config), ask(config, size).theirs()
    call = torch.compile(network) if compiled else network
    return lambda: call(**asked, return_dict=False)[0], {}


def made_decoder(config: AutoencoderConfig, size: int, compiled: bool = False) -> Made:
    """The same of a decoder; ``size`` is that of the latents."""
    network, z = autoencoder(config), latent(config, size)
    call = torch.compile(network.decode) if compiled else network.decode
    return lambda: call(z, return_dict=False)[0], {}


@cache
def unet_work(config: UNetConfig, size: int, pictures: int = 1) -> float:
    """Operations of a call of diffusers' U-Net with 2 rows a picture, direct convolutions counted as such."""
    with META:
        network = unet(config)
    asked = ask(config, size).theirs(pictures, META)
    return _counted(lambda: network(**asked, return_dict=False), network)


@cache
def decoder_work(config: AutoencoderConfig, size: int, pictures: int = 1) -> float:
    """Operations of decoding latents of ``size`` x ``size``."""
    with META:
        network = autoencoder(config)
    z = latent(config, size).to(META).repeat(pictures, 1, 1, 1)
    return _counted(lambda: network.decode(z, return_dict=False), network)


def _counted(call: Callable[[], Any], network: nn.Module) -> float:
    return float(trace(call, weights(network))[1].flops)
