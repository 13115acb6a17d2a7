"""Samplers: coroutines that ask for clean pictures and are sent them, in the variance-exploding frame."""

from dataclasses import dataclass

from sfumato.core.errors import RequestError
from sfumato.core.registry import Registry, fold
from sfumato.noise import SPACINGS


@dataclass(frozen=True)
class Solver:
    """What the table of samplers says of one.

    Attributes:
        target: where it is.
        title: what people call it (A1111's name where there is one).
        order: of convergence, with the options it has by default, from pure noise (of a stochastic one: without its
            noise). Tests measure it.
        queries: questions to the network a step, but for the first or last ones.
        stochastic: whether it draws noise during the run.
        spacing: the spacing it is usually run with, where neither the request nor the model's files say one.
        unit: whether its home starts from noise alone in the model's own frame (see ``noise.spacing.initial_scale``).
        options: the keyword arguments that it takes.
        aliases: other names of the same.
    """

    target: str
    title: str
    order: int
    queries: int
    stochastic: bool
    spacing: str
    unit: bool
    options: tuple[str, ...]
    aliases: tuple[str, ...]


_CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")
_SDE = ("eta", "s_noise")
_MULTISTEP = ("lower_order_final", "euler_at_final")

TABLE: dict[str, Solver] = {
    "ddpm": Solver(
        "sfumato.sampling.ddpm:ddpm", "DDPM", 1, 1, True, "leading", True, ("variance",),
        ("DDPMScheduler", "UnCLIPScheduler"),
    ),
    "ddim": Solver(
        "sfumato.sampling.ddim:ddim", "DDIM", 1, 1, False, "ddim", True, _SDE, ("DDIMScheduler",),
    ),
    "plms": Solver(
        "sfumato.sampling.pndm:plms", "PLMS", 2, 1, False, "ddim", True, ("average",), ("PNDMScheduler",),
    ),
    "pndm": Solver(
        "sfumato.sampling.pndm:pndm", "PNDM", 2, 1, False, "ddim", True, ("average", "middle"), (),
    ),
    "ipndm": Solver(
        "sfumato.sampling.pndm:ipndm", "IPNDM", 2, 1, False, "normal", True, ("order",), ("IPNDMScheduler",),
    ),
    "lms": Solver(
        "sfumato.sampling.lms:lms", "LMS", 4, 1, False, "normal", False, ("order",),
        ("LMSDiscreteScheduler", "K-LMS", "IPNDM_V"),
    ),
    "euler": Solver(
        "sfumato.sampling.euler:euler", "Euler", 1, 1, False, "normal", False, _CHURN,
        ("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"),
    ),
    "euler_ancestral": Solver(
        "sfumato.sampling.euler:euler_ancestral", "Euler a", 1, 1, True, "normal", False, _SDE,
        ("EulerAncestralDiscreteScheduler",),
    ),
    "gradient_estimation": Solver(
        "sfumato.sampling.gradient_estimation:gradient_estimation", "Gradient Estimation", 1, 1, False, "normal", False,
        ("gamma",), (),
    ),
    "heun": Solver(
        "sfumato.sampling.heun:heun", "Heun", 2, 2, False, "normal", False, _CHURN, ("HeunDiscreteScheduler",),
    ),
    "heunpp2": Solver("sfumato.sampling.heun:heunpp2", "HeunPP2", 1, 3, False, "normal", False, (), ()),
    "dpm_2": Solver(
        "sfumato.sampling.dpm2:dpm_2", "DPM2", 2, 2, False, "karras", False, _CHURN, ("KDPM2DiscreteScheduler",),
    ),
    "dpm_2_ancestral": Solver(
        "sfumato.sampling.dpm2:dpm_2_ancestral", "DPM2 a", 2, 2, True, "karras", False, _SDE,
        ("KDPM2AncestralDiscreteScheduler",),
    ),
    "dpm_fast": Solver("sfumato.sampling.dpm:dpm_fast", "DPM fast", 2, 1, False, "normal", False, _SDE, ()),
    "dpm_adaptive": Solver(
        "sfumato.sampling.dpm:dpm_adaptive", "DPM adaptive", 3, 3, False, "normal", False,
        ("order", "rtol", "atol", "h_init", "pcoeff", "icoeff", "dcoeff", "safety", *_SDE), (),
    ),
    "dpmpp_2s": Solver(
        "sfumato.sampling.dpmpp_singlestep:dpmpp_singlestep", "DPM++ 2S", 2, 1, False, "karras", True,
        ("order", "solver", "lower_order_final"), ("DPMSolverSinglestepScheduler",),
    ),
    "dpmpp_2s_ancestral": Solver(
        "sfumato.sampling.dpmpp_2s:dpmpp_2s_ancestral", "DPM++ 2S a", 2, 2, True, "karras", False, _SDE, (),
    ),
    "dpmpp_sde": Solver(
        "sfumato.sampling.dpmpp_2s:dpmpp_sde", "DPM++ SDE", 2, 2, True, "karras", False, (*_SDE, "r"),
        ("DPMSolverSDEScheduler",),
    ),
    "dpmpp_2m": Solver(
        "sfumato.sampling.dpmpp:dpmpp_2m", "DPM++ 2M", 2, 1, False, "karras", True,
        ("order", "solver", *_SDE, *_MULTISTEP),
        ("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"),
    ),
    "dpmpp_2m_sde": Solver(
        "sfumato.sampling.dpmpp:dpmpp_2m_sde", "DPM++ 2M SDE", 2, 1, True, "exponential", True,
        ("solver", *_SDE, *_MULTISTEP), (),
    ),
    "dpmpp_2m_sde_heun": Solver(
        "sfumato.sampling.dpmpp:dpmpp_2m_sde_heun", "DPM++ 2M SDE Heun", 2, 1, True, "exponential", True,
        (*_SDE, *_MULTISTEP), (),
    ),
    "dpmpp_3m": Solver(
        "sfumato.sampling.dpmpp:dpmpp_3m", "DPM++ 3M", 2, 1, False, "karras", True, ("solver", *_MULTISTEP), (),
    ),
    "dpmpp_3m_sde": Solver(
        "sfumato.sampling.dpmpp:dpmpp_3m_sde", "DPM++ 3M SDE", 2, 1, True, "exponential", True, _SDE, (),
    ),
    "deis": Solver(
        "sfumato.sampling.deis:deis", "DEIS", 2, 1, False, "normal", True, ("order", "lower_order_final"),
        ("DEISMultistepScheduler",),
    ),
    "uni_pc": Solver(
        "sfumato.sampling.unipc:uni_pc", "UniPC", 2, 1, False, "normal", True,
        ("order", "solver", "lower_order_final", "skip_corrector"), (),
    ),
    "uni_pc_bh2": Solver(
        "sfumato.sampling.unipc:uni_pc_bh2", "UniPC bh2", 2, 1, False, "normal", True,
        ("order", "lower_order_final", "skip_corrector"), ("UniPCMultistepScheduler",),
    ),
    "lcm": Solver("sfumato.sampling.lcm:lcm", "LCM", 1, 1, True, "lcm", True, (), ("LCMScheduler",)),
    "restart": Solver(
        "sfumato.sampling.restart:restart", "Restart", 2, 2, True, "karras", False, ("segments", "s_noise"), (),
    ),
}
"""Every sampler, as data that can be read without torch."""

SAMPLERS = Registry(
    kind="sampler",
    targets={name: solver.target for name, solver in TABLE.items()},
    aliases={
        alias: name
        for name, solver in TABLE.items()
        for alias in (solver.title, f"sample_{name}", *solver.aliases)
    },
)
"""Samplers by k-diffusion's names, A1111's, diffusers' classes, and ``sample_`` functions."""

REFUSED = {
    "DDIM CFG++": "it steps along the unguided noise, which a sampler is not told here; use DDIM at a lower scale",
}
"""Names of the field that no sampler here answers to, and why."""


def resolve(name: str) -> tuple[str, str | None]:
    """The sampler's canonical name, and the spacing that an old-style name has at its end ("DPM++ 2M Karras").

    Raises:
        RequestError: there is no such sampler; the message offers the nearest.
    """
    for refused, why in REFUSED.items():
        if fold(name) == fold(refused):
            raise RequestError(f"There is no sampler {refused!r}: {why}.")
    try:
        return SAMPLERS.canonical(name), None
    except RequestError:
        for spacing in sorted((*SPACINGS.targets, *SPACINGS.aliases), key=len, reverse=True):
            if fold(name).endswith(fold(spacing)):
                try:
                    return SAMPLERS.canonical(fold(name).removesuffix(fold(spacing))), SPACINGS.canonical(spacing)
                except RequestError:
                    continue
        raise
