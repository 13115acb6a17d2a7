"""How tests answer a sampler's questions."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sfumato.noise.prediction import Prediction
from sfumato.noise.schedule import Schedule
from sfumato.sampling.types import Estimate, Noise, Query, Sampler

Denoiser = Callable[[Query], Estimate]
Network = Callable[[Tensor, float], Tensor]  # x in the model's own frame, time -> output


def drive(sampler: Sampler, denoise: Denoiser) -> Tensor:
    """Run to the end."""
    query = next(sampler)
    while True:
        try:
            query = sampler.send(denoise(query))
        except StopIteration as end:
            result: Tensor = end.value
            return result


def queries(sampler: Sampler, denoise: Denoiser) -> Iterator[Query]:
    """Run to the end, and show every question on the way."""
    query = next(sampler)
    while True:
        yield query
        try:
            query = sampler.send(denoise(query))
        except StopIteration:
            return


def network_denoiser(network: Network, schedule: Schedule, prediction: Prediction, whole: bool = False) -> Denoiser:
    """A denoiser made of a network that lives in its schedule's own frame."""

    def denoise(query: Query) -> Estimate:
        sigma = torch.tensor(query.sigma, dtype=torch.float64)
        time, alpha = float(schedule.time(sigma)), float(schedule.alpha(sigma))
        x = query.x * alpha
        output = network(x, float(round(time)) if whole else time)
        return Estimate(prediction.to_x0(x, output, alpha, alpha * query.sigma))

    return denoise


def generator_noise(shape: torch.Size, seed: int) -> Noise:
    """The noise that diffusers draws from a CPU generator of this seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(shape, generator=generator)


def smooth(x: Tensor, time: float) -> Tensor:
    """A stand-in for a network: smooth, nonlinear, and as large as what it is given."""
    return 0.6 * x + 0.4 * torch.sin(1.7 * x + time / 400.0)
