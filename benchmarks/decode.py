"""SD1.5's decoder beside the peers' on the same weights (random, of true size), at 256 and 512 pixels.

Each subject has its own process, and the allocator that its user would have: glibc's own, or sfumato's setting of it.
"""

import sys
from collections.abc import Sequence

import torch

from benchmarks import openvino_peer, peers
from benchmarks.harness import Made, Process, Subject, compare
from benchmarks.options import options
from benchmarks.report import machine, report
from sfumato.models.autoencoder import AutoencoderConfig


def main(arguments: Sequence[str] = ()) -> None:
    flags = options(__doc__, rounds=0, turns=5)
    flags.add_argument("--model", choices=peers.VAES, default="sd15")
    flags.add_argument("--sizes", nargs="+", type=int, default=[256, 512], help="pixels")
    chosen = flags.parse_args(arguments)
    for pixels in chosen.sizes:
        size, about, name = pixels // 8, machine(), chosen.model
        config = peers.VAES[name]
        subjects: dict[str, Subject] = {
            "diffusers": Process(peers.made_decoder, config, size),
            "diffusers compiled": Process(peers.made_decoder, config, size, True),
            "OpenVINO": Process(openvino_peer.made_decoder, name, size),
            "sfumato": Process(sfumato, config, size),
        }
        row = compare(
            f"decode, {peers.TITLES[name]}, {pixels} x {pixels} pixels", chosen.of(subjects), chosen.turns,
            work=peers.decoder_work(config, size), rounds=chosen.rounds,
        )  # fmt: skip
        report(f"decode_{name}_{pixels}", [row], about, chosen.trial)


def sfumato(config: AutoencoderConfig, size: int) -> Made:
    from sfumato.engine.allocator import keep_freed_memory
    from sfumato.engine.pack import FAST, pack
    from sfumato.models.autoencoder import Autoencoder

    keep_freed_memory()
    with torch.device("meta"):
        autoencoder = Autoencoder(config)
    autoencoder.load_state_dict(peers.autoencoder(config).state_dict(), assign=True)
    done, z = pack(autoencoder.eval().decoder, FAST), peers.latent(config, size)
    weights = f"weights {done.after / done.before:.2f} of plain, {done.winograd} transformed"
    return lambda: autoencoder.decode(z), {"sfumato": done.why or weights}


if __name__ == "__main__":
    main(sys.argv[1:])
