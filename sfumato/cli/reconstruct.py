"""``sfumato reconstruct``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar


@dataclass(frozen=True)
class Reconstruct:
    """A picture through an autoencoder and back: what a model that uses it can show at best."""

    file: Annotated[Path, "a picture"]
    vae: Annotated[str, "autoencoder or model: folder, single file, TAESD file, or hub name"]
    output: Annotated[Path | None, "the picture that comes back; FILE-back.png unless given"] = None
    side: Annotated[int | None, "scale and crop to a square of so many pixels first"] = None
    both: Annotated[bool, "save before and after side by side"] = False

    spellings: ClassVar = {"output": ("-o",)}

    def run(self) -> int:
        from sfumato.families.autoencoders import read_autoencoder
        from sfumato.tasks.picture import Picture, grid
        from sfumato.tasks.reconstruct import reconstruct

        found = reconstruct(read_autoencoder(self.vae), Picture.open(self.file), self.side)
        path = self.output or self.file.with_name(f"{self.file.stem}-back.png")
        (grid([found.before, found.after], 2) if self.both else found.after).save(path)
        channels, height, width = found.latent
        print(f"{path}: {found.psnr:.1f} dB PSNR through {width} x {height} latents of {channels} channels")
        return 0
