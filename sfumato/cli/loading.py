"""The flags by which every command that draws names its model."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from sfumato.core.shipped import SHIPPED


@dataclass(frozen=True)
class Loading:
    """Which model, and how it is held."""

    model: Annotated[
        str | None, "checkpoint folder, single file, or hub name; sfumato's own model unless given",
    ] = None
    vae: Annotated[str | None, "another autoencoder in place of the model's own"] = None
    vae_tiny: Annotated[str | None, "a tiny autoencoder of the same latents, for the lossy mode tiny_decoder"] = None
    lora_folder: Annotated[str | None, "where <lora:name:0.8> in a prompt finds name.safetensors"] = None
    refiner: Annotated[str | None, "a second model that takes over at --refiner-start"] = None
    control_model: Annotated[str | None, "a ControlNet, folder or file, which reads the picture of --control"] = None
    family: Annotated[str | None, "decides where a checkpoint could be of several; see `sfumato models`"] = None
    prediction: Annotated[str | None, "decides where a single file could have been trained with several"] = None
    variant: Annotated[str | None, "of a folder that holds several, such as fp16"] = None
    device: Annotated[str | None, "cuda, cuda:1, mps or cpu; the best there is unless given"] = None
    dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, "precision; the device's best unless given"] = (
        None
    )
    quantize: Annotated[
        Literal["int8", "fp8"] | None, "the denoiser multiplies in 8 bits, faster and lossy: int8 on CPUs, fp8 on GPUs",
    ] = None
    compile: Annotated[
        Literal["default", "max-autotune"] | None,
        "leave the networks to torch.compile: the first picture of a size takes minutes more, once a machine",
    ] = None
    max_memory: Annotated[str | None, "what drawing may hold, such as 6GB: slower ways are chosen where it must be"] = (
        None
    )

    def open(self) -> Any:
        """The pipeline."""
        from sfumato.engine.allocator import keep_freed_memory

        if self.max_memory is None:
            keep_freed_memory()
        from sfumato.tasks.pipeline import load

        return load(
            self.model or SHIPPED, refiner=self.refiner, family=self.family, prediction=self.prediction,
            device=self.device, dtype=self.dtype, vae=self.vae, vae_tiny=self.vae_tiny, variant=self.variant,
            max_memory=self.max_memory, quantize=self.quantize, lora_folder=self.lora_folder,
            compile=self.compile, control=self.control_model,
        )  # fmt: skip
