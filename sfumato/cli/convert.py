"""``sfumato convert``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from sfumato.core.sizes import parse_bytes


@dataclass(frozen=True)
class Convert:
    """Write a model in another format, read it back, and compare every tensor."""

    source: Annotated[str, "checkpoint folder, single file, or hub name"]
    target: Annotated[Path, "NAME.safetensors for a single file, anything else for a folder"]
    dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, "precision to write; as it is unless given"] = (
        None
    )
    variant: Annotated[str | None, "of a folder that holds several, such as fp16"] = None
    family: Annotated[str | None, "where the file could be of several families"] = None
    prediction: Annotated[str | None, "where a single file does not tell: epsilon or v_prediction"] = None
    vae: Annotated[str | None, "another autoencoder in place of the source's own, or where it has none"] = None
    overwrite: Annotated[bool, "replace the target"] = False
    as_variant: Annotated[str | None, "put this into the names of a folder's weight files, such as fp16"] = None
    shard_size: Annotated[str | None, "split a folder's weight files beyond this, such as 2GB"] = None

    def run(self) -> int:
        from sfumato.families.convert import convert
        from sfumato.families.load import DTYPES

        done = convert(
            self.source, self.target, dtype=DTYPES[self.dtype] if self.dtype else None, variant=self.variant,
            family=self.family, prediction=self.prediction, vae=self.vae, overwrite=self.overwrite,
            as_variant=self.as_variant,
            shard_size=None if self.shard_size is None else parse_bytes(self.shard_size),
        )
        how = "bit for bit" if done.exact else f"rounded to {self.dtype}"
        print(f"{self.target}: {done.family}, {done.tensors} tensors read back equal, {how}.")
        if done.left_out:
            print(f"Such files hold no {' and no '.join(done.left_out)}: keep the source for that.")
        return 0
