"""Multistep DPM-Solver++: Lu et al., "DPM-Solver++: fast solver for guided sampling", 2022, algorithm 2."""

import math
from typing import Literal

import torch
from torch import Tensor

from sfumato.sampling.types import Noise, Query, Sampler, Sigmas


def dpmpp_2m(
    x: Tensor, sigmas: Sigmas, noise: Noise, *, order: int = 2, solver: Literal["midpoint", "heun"] = "midpoint",
    eta: float = 0.0, s_noise: float = 1.0, lower_order_final: bool = False, euler_at_final: bool = False,
) -> Sampler:
    """DPM-Solver++(2M) (Lu et al., 2022, algorithm 2), and with eta its SDE form (section 5 and appendix).

    With lambda = -log sigma, h = lambda_next - lambda and k = 1 + eta, a step is
    x <- e^{-kh} x + k int e^{-k (lambda_next - l)} x0(l) dl + noise, x0(l) extrapolated from the last answers.

    Args:
        order: 1, 2 or 3. The third-order difference is weighted as the paper's own program weights it, which is half
            of its Taylor coefficient: the solver is more accurate than order 2, but its order remains 2.
        solver: how the slope of x0 enters: at the middle of the step, or integrated ("heun").
        eta: 0 the ODE, 1 the SDE.
        lower_order_final: with fewer than 15 steps, end in orders 2 and 1.
        euler_at_final: the last step is of order 1.
    """
    steps = len(sigmas) - 1
    answers: list[Tensor] = []  # newest first
    spans: list[float] = []  # of lambda, newest first
    for i in range(steps):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        answers = [(yield Query(x, sigma)).x0, *answers[: order - 1]]
        if sigma_next == 0.0:
            return answers[0]
        if sigma_next == sigma:  # a last step of no length
            return x
        h = math.log(sigma / sigma_next)
        left = steps - i
        now = min(order, len(answers))
        if left == 1 and (euler_at_final or (lower_order_final and steps < 15)):
            now = 1
        elif left == 2 and lower_order_final and steps < 15:
            now = min(now, 2)
        z = (1.0 + eta) * h
        x0 = answers[0]
        step = torch.lerp(x0, x, math.exp(-z))
        if now > 1:
            first, second = differences(answers[:now], [s / h for s in spans])
            slope = 1.0 + math.expm1(-z) / z
            midpoint = solver == "midpoint" and now == 2
            step = step + first * (-0.5 * math.expm1(-z) if midpoint else slope)
            if second is not None:
                step = step - second * (slope / z - 0.5)
        if eta > 0:
            step = step + noise() * (s_noise * sigma_next * math.sqrt(-math.expm1(-2.0 * eta * h)))
        x, spans = step, [h, *spans[: order - 2]]
    return x


def differences(answers: list[Tensor], ratios: list[float]) -> tuple[Tensor, Tensor | None]:
    """Divided differences of the last two or three answers, for a next step of length 1.

    Args:
        answers: newest first.
        ratios: the lengths of the steps between them, newest first, in units of the next step.
    """
    first = (answers[0] - answers[1]) / ratios[0]
    if len(answers) == 2:
        return first, None
    older = (answers[1] - answers[2]) / ratios[1]
    both = ratios[0] + ratios[1]
    return first + (first - older) * (ratios[0] / both), (first - older) / both


def dpmpp_3m(
    x: Tensor, sigmas: Sigmas, noise: Noise, *, solver: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = False, euler_at_final: bool = False,
) -> Sampler:
    """DPM-Solver++(3M): ``dpmpp_2m`` with three answers; ``solver`` is that of its second step."""
    return dpmpp_2m(x, sigmas, noise, order=3, solver=solver, lower_order_final=lower_order_final,
                    euler_at_final=euler_at_final)


def dpmpp_2m_sde(
    x: Tensor, sigmas: Sigmas, noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0,
    solver: Literal["midpoint", "heun"] = "midpoint", lower_order_final: bool = False, euler_at_final: bool = False,
) -> Sampler:
    """SDE-DPM-Solver++(2M) (Lu et al., 2022, section 5): ``dpmpp_2m`` with eta = 1."""
    return dpmpp_2m(x, sigmas, noise, solver=solver, eta=eta, s_noise=s_noise, lower_order_final=lower_order_final,
                    euler_at_final=euler_at_final)


def dpmpp_2m_sde_heun(
    x: Tensor, sigmas: Sigmas, noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0,
    lower_order_final: bool = False, euler_at_final: bool = False,
) -> Sampler:
    """SDE-DPM-Solver++(2M) with the slope of x0 integrated: ``dpmpp_2m_sde`` with ``solver="heun"``."""
    return dpmpp_2m(x, sigmas, noise, solver="heun", eta=eta, s_noise=s_noise, lower_order_final=lower_order_final,
                    euler_at_final=euler_at_final)


def dpmpp_3m_sde(x: Tensor, sigmas: Sigmas, noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0) -> Sampler:
    """SDE-DPM-Solver++ with three answers (k-diffusion)."""
    return dpmpp_2m(x, sigmas, noise, order=3, solver="heun", eta=eta, s_noise=s_noise)
