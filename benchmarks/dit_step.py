"""One call of DiT-XL/2, both guidance halves, and a training step of DiT-S/2, beside diffusers' on the same weights.

Weights are random, of true size; each subject has its own process. Classes and schedule are prepared beforehand, as a
run of many steps does. The training step is forward, backward and AdamW in float32, on latents of 16 x 16.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Made, Process, Subject, compare
from benchmarks.options import options
from benchmarks.report import machine, report
from sfumato.models.dit import DITS, DiT, DiTConfig, positions
from sfumato.nn.conditioning import Conditioning

WORK = 2 * 2 * 118.6e9
"""Operations of a call with two rows: the paper's 118.6 billion multiplications each."""
SMALL = replace(DITS["dit-s2"], out_channels=None, sample_size=16)
BATCH = 8


def main(arguments: Sequence[str] = ()) -> None:
    chosen = options(__doc__, rounds=0, turns=5).parse_args(arguments)
    about, rounds = machine(), chosen.rounds
    subjects: dict[str, Subject] = {"diffusers": Process(diffusers), "sfumato": Process(sfumato)}
    rows = [compare("DiT-XL/2 step, 32 x 32, 2 rows", chosen.of(subjects), chosen.turns, work=WORK, rounds=rounds)]
    subjects = {"diffusers": Process(train_diffusers), "sfumato": Process(train_sfumato)}
    name = f"training step, DiT-S/2, 16 x 16, batch {BATCH}"
    rows.append(compare(name, chosen.of(subjects), chosen.turns, limit=1e-2, rounds=rounds))
    report("dit_step", rows, about, chosen.trial)


def weights(config: DiTConfig) -> Any:
    """diffusers' network with random weights, the same in every process; every block's embedding is the first one's."""
    from diffusers import DiTTransformer2DModel

    from sfumato.core.config import to_dict

    known = {key: value for key, value in to_dict(config).items() if key not in config.own}
    with torch.device("meta"):
        made: Any = DiTTransformer2DModel(**known)  # type: ignore[no-untyped-call]
    made = made.to_empty(device="cpu")
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            first = name if ".norm1.emb." not in name else "transformer_blocks.0." + name.split(".", 2)[2]
            if first != name:
                parameter.copy_(made.get_parameter(first))
            elif parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=drawn)
            else:
                parameter.normal_(std=0.1, generator=drawn)
    side = config.sample_size // config.patch_size
    made.pos_embed.pos_embed = positions(config.width, (side, side), side, torch.device("cpu"))
    return made.eval()


def inputs(config: DiTConfig, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, times and classes."""
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(rows, config.in_channels, config.sample_size, config.sample_size, generator=drawn)
    return x, torch.randint(0, 1000, (rows,), generator=drawn), torch.randint(0, 1000, (rows,), generator=drawn)


def diffusers() -> Made:
    network = weights(DITS["dit-xl2"])
    x, _, _ = inputs(DITS["dit-xl2"], 1)
    both, t, labels = x.repeat(2, 1, 1, 1), torch.tensor([500, 500]), torch.tensor([207, 1000])
    return lambda: network(both, t, class_labels=labels).sample, {}


def sfumato() -> Made:
    from sfumato.engine.allocator import keep_freed_memory
    from sfumato.engine.pack import BALANCED, pack

    keep_freed_memory()
    with torch.device("meta"):
        network = DiT(DITS["dit-xl2"])
    network.load_state_dict(weights(DITS["dit-xl2"]).state_dict(), assign=True)
    done = pack(network, BALANCED)
    x, _, _ = inputs(DITS["dit-xl2"], 1)
    conditioning = Conditioning(labels=torch.tensor([207, 1000]))
    with torch.inference_mode():
        times = network.prepare_times(torch.tensor([500.0]), conditioning)[0]
    return lambda: network(x, times, conditioning), {"native layers": str(done.layers) if done.layers else done.why}


def trained(network: torch.nn.Module, call: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Made:
    """A turn: a step of AdamW from the weights as they were; its output is a layer's gradient."""
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    layer = network.get_parameter("transformer_blocks.5.attn1.to_q.weight")
    x, t, labels = inputs(SMALL, BATCH)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))

    def turn() -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            network.load_state_dict(start)
            optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
            torch.autograd.backward((call(x, t, labels) - noise).square().mean())
            assert layer.grad is not None
            gradient = layer.grad.clone()
            optimizer.step()
            optimizer.zero_grad()
            return gradient

    return turn, {}


def train_diffusers() -> Made:
    network = weights(SMALL)  # left in evaluation mode, in which it drops no classes by itself
    return trained(network, lambda x, t, labels: network(x, t, class_labels=labels).sample)


def train_sfumato() -> Made:
    network = DiT(SMALL, shared=True)
    theirs = weights(SMALL).state_dict()
    network.load_state_dict({name: theirs[name] for name in network.state_dict()})
    return trained(network, lambda x, t, labels: network(x, t, Conditioning(labels=labels)))


if __name__ == "__main__":
    main(sys.argv[1:])
