"""Training an autoencoder."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import ConfigError
from sfumato.families.autoencoders import read_autoencoder
from sfumato.models.autoencoder import Autoencoder
from sfumato.models.discriminator import Discriminator
from sfumato.models.latents import Gaussian
from sfumato.models.perceptual import Perceptual
from sfumato.models.vq_autoencoder import VQAutoencoder
from sfumato.objectives.autoencoder import adversarial, discrimination, reconstruction
from sfumato.objectives.loss import Loss
from sfumato.training.export import put_part
from sfumato.training.framing import to_network
from sfumato.training.grid import save_grid
from sfumato.training.loop import Batch
from sfumato.training.material import Material
from sfumato.training.order import Order, Place, normals
from sfumato.training.perceptual import open_perceptual
from sfumato.training.recipe import AutoencoderStage, Recipe
from sfumato.training.start import begin, settle

MEASURED = 512
"""Pictures on which the scale of the latents is measured, and at most so many are evaluated."""


class Output(NamedTuple):
    """What a picture became."""

    pictures: Tensor  # [B, 3, H, W]
    mean: Tensor  # [B, C, h, w]
    log_variance: Tensor  # [B, C, h, w]
    codes: Tensor  # [2] code book and commitment loss of a VQ autoencoder, else zeros


class Roundtrip(nn.Module):
    """Encoder and decoder as one call, so that processes can share its gradients."""

    def __init__(self, net: Autoencoder | VQAutoencoder) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Output:
        """[B, 3, H, W], and the noise of the latents' draw; without it their mean is decoded."""
        latents = self.net.encode(x)
        if isinstance(self.net, VQAutoencoder):
            found = self.net.quantize(latents.mean)
            losses = torch.stack([found.codebook_loss, found.commitment_loss])
            return Output(self.net.decode_quantised(found.latents), *latents, losses)
        z = latents.mode() if noise is None else latents.sample(noise.to(latents.mean.dtype))
        return Output(self.net.decode(z), *latents, x.new_zeros(2))


class AutoencoderTraining:
    """The stage. Its model is the run folder's ``vae``."""

    name = "autoencoder"
    sharded = False  # the judge is weighed by gradients at a weight

    def __init__(self, recipe: Recipe, material: Material, root: Path) -> None:
        assert recipe.autoencoder is not None
        self.config: AutoencoderStage = recipe.autoencoder
        if self.config.flip is not None:
            material = material.flipping(self.config.flip)
        self.material, self.root, self.seed = material, root, recipe.seed
        if self.config.train.gradient_checkpointing:
            raise ConfigError("gradient_checkpointing is for denoisers alone: leave it out of [autoencoder.train].")
        part = None if self.config.start is None else read_autoencoder(self.config.start)
        if part is not None:
            name = "vq" if part.kind == "VQModel" else "model"
            if part.kind not in ("VQModel", "AutoencoderKL"):
                raise ConfigError(f"start = {self.config.start!r}: an {part.kind} cannot be trained here.")
            settled = settle(part, self.config.model or self.config.vq, f"autoencoder.{name}")
            self.config = replace(self.config, **{"model": None, "vq": None, name: settled})
        torch.manual_seed(recipe.seed)
        if self.config.model is not None:
            net = Autoencoder(self.config.model)
            if self.config.first_log_variance is not None:
                begin_certain(net, self.config.first_log_variance)
            if self.config.model.shortcut and part is None:
                begin_linear(net, [material.pixels(part) for part in material.batches(material.training[:MEASURED])])
            self.network = Roundtrip(net)
        else:
            assert self.config.vq is not None
            self.network = Roundtrip(VQAutoencoder(self.config.vq))
        if part is not None:
            begin(self.network.net, part)
        for width, height in material.sizes:
            if width % self.network.net.factor or height % self.network.net.factor:
                raise ConfigError(
                    f"Pictures of {width} x {height} cannot be encoded by a factor of {self.network.net.factor}: "
                    "choose another data.resolution, or other levels."
                )
        self.players: dict[str, nn.Module] = {"autoencoder": self.network}
        self.rates = {"autoencoder": 1.0}
        if self.config.loss.adversarial:
            self.players["discriminator"] = Discriminator(self.config.discriminator)
            self.rates["discriminator"] = self.config.discriminator_rate
        self.distance: Perceptual | None = None
        if self.config.loss.perceptual:
            if self.config.perceptual_weights is None:
                raise ConfigError("loss.perceptual is not 0: name its weights with autoencoder.perceptual_weights.")
            self.distance = open_perceptual(self.config.perceptual_weights, torch.device("cpu"))

    def order(self, batch: int) -> Order:
        return self.material.order(batch)

    def load(self, places: list[Place]) -> Batch:
        pixels = torch.stack([self.material.framed(self.material.training[p.item], p).pixels for p in places])
        channels, factor = self._latent_channels, self.network.net.factor
        shape = (channels, pixels.shape[2] // factor, pixels.shape[3] // factor)
        return {"pixels": pixels, "noise": normals(places, self.seed, "latent", shape)}

    @property
    def _latent_channels(self) -> int:
        config = self.network.net.config
        return getattr(config, "dim", config.latent_channels)

    def losses(self, players: Mapping[str, nn.Module], batch: Batch, step: int) -> Iterator[tuple[str, Loss]]:
        x, judge = to_network(batch["pixels"]), self.players.get("discriminator")
        if judge is not None:
            judge.requires_grad_(False)  # it passes the gradient on and learns nothing itself
        output: Output = players["autoencoder"](x, batch["noise"])
        loss = self._reconstruction(x, output)
        total, parts = loss.total, dict(loss.parts)
        if judge is not None:
            last = self.network.net.decoder.last_layer
            judged = adversarial(self.config.loss, judge, output.pictures, total, last, step)
            if judged is not None:
                total, parts = total + judged.total, parts | dict(judged.parts)
        yield "autoencoder", Loss(total, parts, loss.each)
        if judge is not None and step >= self.config.loss.adversarial_start:
            judge.requires_grad_(True)
            yield "discriminator", discrimination(self.config.loss, players["discriminator"], x, output.pictures)

    def _reconstruction(self, x: Tensor, output: Output) -> Loss:
        latents: Gaussian | Tensor = Gaussian(output.mean.float(), output.log_variance.float())
        if self.config.vq is not None:
            latents = output.codes[0] + self.config.loss.commitment * output.codes[1]
        if self.distance is not None:
            self.distance.to(x.device)
        return reconstruction(self.config.loss, x, output.pictures, latents, self.distance)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        sums: dict[str, float] = {}
        items = self.material.held_out[:MEASURED]
        device = next(self.network.parameters()).device
        for part in self.material.batches(items):
            x = self.material.pixels(part).to(device)
            loss = self._reconstruction(x, self.network(x))
            for key, value in {"loss": loss.total, **loss.parts}.items():
                sums[key] = sums.get(key, 0.0) + value.item() * len(part) / len(items)
        return sums

    @torch.no_grad()
    def export(self, weights: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        whole = deepcopy(self.network)
        whole.load_state_dict(dict(weights))
        device = next(whole.parameters()).device
        total, squares, count = 0.0, 0.0, 0
        for part in self.material.batches(self.material.training[:MEASURED]):
            latents = whole.net.encode(self.material.pixels(part).to(device))
            variance = latents.log_variance.double().exp()  # zero where a latent is certain
            total += latents.mean.double().sum().item()
            squares += (latents.mean.double() ** 2 + variance).sum().item()
            count += latents.mean.numel()
        mean = total / count
        scale = float(max(squares / count - mean**2, 1e-12) ** -0.5)
        kind = "AutoencoderKL" if self.config.model is not None else "VQModel"
        config = replace(whole.net.config, scaling_factor=scale, sample_size=self.material.config.resolution)
        put_part(self.root, "vae", kind, config, whole.net.state_dict())

    @torch.no_grad()
    def sample(self, path: Path) -> None:
        items = (self.material.held_out or self.material.training)[:8]
        part = deepcopy(self.network).cpu().eval()
        pairs = []
        for item in items:
            x = self.material.pixels([item])
            pairs.append((x[0], part(x).pictures[0]))
        save_grid(path, [x for x, _ in pairs] + [y for _, y in pairs], len(pairs))


@torch.no_grad()
def begin_certain(net: Autoencoder, log_variance: float) -> None:
    """Start with latents of this variance: that of an untrained network, 1, drowns what there is to learn from."""
    last = net.encoder.conv_out if net.quant_conv is None else net.quant_conv
    assert last.bias is not None
    last.bias[len(last.bias) // 2 :] = log_variance


@torch.no_grad()
def begin_linear(net: Autoencoder, pictures: Sequence[Tensor]) -> None:
    """Start from the best linear autoencoder of these pictures: the principal components of their patches.

    The networks beside the shortcuts begin by adding nothing. Components are scaled by the root of their deviation:
    between latents of equal variance, whose fine detail would count as much as the coarse, and plain pixels.

    Args:
        pictures: [B, 3, H, W] in [-1, 1], each.

    Raises:
        ConfigError: more latent channels than values in a patch.
    """
    encode, decode = net.encoder.shortcut, net.decoder.shortcut
    assert encode is not None
    assert decode is not None
    assert encode.bias is not None
    assert decode.bias is not None
    channels, values = net.config.latent_channels, encode.weight[0].numel()
    if channels > values:
        raise ConfigError(f"shortcut: {channels} latent channels of patches of {values} values; take {values} at most.")
    patches = torch.cat([F.pixel_unshuffle(x, net.factor).movedim(1, -1).flatten(0, 2) for x in pictures])  # [N, D]
    mean = patches.double().mean(0)
    variance, vectors = torch.linalg.eigh(torch.cov(patches.double().T))
    variance, vectors = variance[-channels:].flip(0).clamp(min=1e-8), vectors[:, -channels:].flip(1)  # [C], [D, C]
    scale = variance**-0.25 / variance.sqrt().mean().sqrt()  # the latents' mean variance is 1
    down, up = (vectors * scale).T, vectors / scale  # [C, D], [D, C]
    encode.weight.zero_()
    encode.bias.zero_()
    encode.weight[:channels] = down.view(channels, *encode.weight.shape[1:]).float()
    encode.bias[:channels] = -(down @ mean).float()
    decode.weight.copy_(up[:, :, None, None])
    decode.bias.copy_(mean)
    for last in (net.encoder.conv_out, net.decoder.conv_out):
        assert last.bias is not None
        last.weight.zero_()
        last.bias[:channels if last is net.encoder.conv_out else None] = 0.0  # not the log-variances
    for mix in (net.quant_conv, net.post_quant_conv):
        if mix is not None:
            assert mix.bias is not None
            nn.init.dirac_(mix.weight)
            mix.bias[:channels] = 0.0
