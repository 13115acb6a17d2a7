"""Terms of the autoencoder's objective, each against its formula."""

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.errors import ConfigError
from sfumato.models.discriminator import Discriminator, DiscriminatorConfig
from sfumato.models.latents import Gaussian
from sfumato.models.perceptual import Perceptual, Vgg16
from sfumato.objectives.autoencoder import AutoencoderLossConfig, adversarial, discrimination, reconstruction

GENERATOR = torch.Generator().manual_seed(0)
PICTURES = torch.rand(2, 3, 16, 16, generator=GENERATOR) * 2 - 1
OUTPUT = PICTURES + 0.1 * torch.randn(2, 3, 16, 16, generator=GENERATOR)
LATENTS = Gaussian(torch.randn(2, 4, 4, 4, generator=GENERATOR), torch.randn(2, 4, 4, 4, generator=GENERATOR))
POINT = Gaussian(torch.zeros(2, 4, 4, 4), torch.zeros(2, 4, 4, 4))


def test_reconstruction_adds_its_terms() -> None:
    config = AutoencoderLossConfig(l1=0.7, l2=0.3, kl=1e-3)
    loss = reconstruction(config, PICTURES, OUTPUT, LATENTS)
    l1, l2 = (PICTURES - OUTPUT).abs().mean(), (PICTURES - OUTPUT).square().mean()
    latent = torch.distributions.Normal(LATENTS.mean, (0.5 * LATENTS.log_variance).exp())
    kl = torch.distributions.kl_divergence(latent, torch.distributions.Normal(0.0, 1.0)).sum() / PICTURES.numel()
    assert torch.allclose(loss.total, 0.7 * l1 + 0.3 * l2 + 1e-3 * kl)
    assert torch.allclose(loss.parts["kl"], kl)
    assert loss.each.shape == (2,)


def test_psnr_is_that_of_pictures_in_the_unit_interval() -> None:
    loss = reconstruction(AutoencoderLossConfig(), torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.2), POINT)
    assert torch.allclose(loss.parts["psnr"], torch.tensor(20.0))  # an error of 0.1 of 1


def test_the_code_books_loss_is_added_as_it_is() -> None:
    loss = reconstruction(AutoencoderLossConfig(), PICTURES, OUTPUT, torch.tensor(0.25))
    assert torch.allclose(loss.total, (PICTURES - OUTPUT).abs().mean() + 0.25)


def test_perceptual_needs_a_network() -> None:
    config = AutoencoderLossConfig(perceptual=1.0)
    with pytest.raises(ConfigError, match="give its weights"):
        reconstruction(config, PICTURES, OUTPUT, POINT)
    loss = reconstruction(config, PICTURES, OUTPUT, POINT, lambda a, b: (a - b).square().flatten(1).sum(1))
    assert torch.allclose(loss.parts["perceptual"], (PICTURES - OUTPUT).square().flatten(1).sum(1).mean())


class Layer(nn.Module):
    """A decoder of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(x)
        return y


def test_the_judgement_is_balanced_by_gradients_at_the_last_layer() -> None:
    torch.manual_seed(0)
    decoder, judge = Layer(), Discriminator(DiscriminatorConfig(channels=8, layers=1))
    config = AutoencoderLossConfig(adversarial=0.5, adversarial_start=3)
    output = decoder(PICTURES)
    rest = reconstruction(config, PICTURES, output, POINT).total
    assert adversarial(config, judge, output, rest, decoder.last.weight, step=2) is None
    loss = adversarial(config, judge, output, rest, decoder.last.weight, step=3)
    assert loss is not None
    (of_judgement,) = torch.autograd.grad(loss.total, decoder.last.weight, retain_graph=True)
    (of_rest,) = torch.autograd.grad(rest, decoder.last.weight)
    assert torch.allclose(of_judgement.norm(), 0.5 * of_rest.norm(), rtol=0.05)


@pytest.mark.parametrize("kind", ["hinge", "logistic"])
def test_a_discriminator_learns_to_tell(kind: str) -> None:
    torch.manual_seed(0)
    judge = Discriminator(DiscriminatorConfig(channels=8, layers=2))
    config = AutoencoderLossConfig(adversarial=1.0, adversarial_loss=kind)  # type: ignore[arg-type]
    optimiser = torch.optim.Adam(judge.parameters(), 2e-3)
    output = nn.Parameter(PICTURES * 0.5)
    for _ in range(40):
        loss = discrimination(config, judge, PICTURES, output)
        optimiser.zero_grad()
        torch.autograd.backward(loss.total)
        optimiser.step()
    assert output.grad is None
    assert loss.parts["real"] > 0.5 > -0.5 > loss.parts["fake"]


def test_perceptual_distance_is_lpips() -> None:
    torch.manual_seed(0)
    distance = Perceptual(Vgg16())
    names = set(distance.state_dict())
    assert {"net.features.0.weight", "net.features.28.bias", "lin0.model.1.weight", "lin4.model.1.weight"} <= names
    assert not any(p.requires_grad for p in distance.parameters())
    for i in range(5):
        torch.nn.init.uniform_(getattr(distance, f"lin{i}").model[1].weight)
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    other = (pictures + 0.2 * torch.randn_like(pictures)).clamp(-1, 1)
    assert distance(pictures, pictures).abs().max() == 0
    expected = torch.zeros(2)
    for i, (x, y) in enumerate(zip(distance.net(pictures), distance.net(other), strict=True)):
        assert x.shape[1] == (64, 128, 256, 512, 512)[i]
        assert x.shape[2] == 32 // 2**i
        weight = getattr(distance, f"lin{i}").model[1].weight[0, :, 0, 0]
        for b in range(2):
            u, v = (z[b] / z[b].norm(dim=0, keepdim=True).clamp(min=1e-10) for z in (x, y))
            expected[b] += (((u - v) ** 2) * weight[:, None, None]).sum(0).mean()
    assert torch.allclose(distance(pictures, other), expected, rtol=1e-3)


def test_settings_that_ask_for_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="nothing asks"):
        AutoencoderLossConfig(l1=0.0)
    with pytest.raises(ConfigError, match="kl"):
        AutoencoderLossConfig(kl=-1.0)
