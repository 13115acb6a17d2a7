"""Coding that overflows in half precision, as Stable Diffusion XL's does: noticed, and done again in float32."""

from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sfumato.core.errors import NumericError
from sfumato.models.latents import Codec, Gaussian


class Decoding(NamedTuple):
    """Pictures, and what there is to say about them."""

    pictures: Tensor  # [B, 3, H, W], about [-1, 1]
    note: str | None  # for whoever asked for the picture; None where all went well


class Encoding(NamedTuple):
    """Latents, and what there is to say about them."""

    latents: Gaussian  # over [B, C, h, w]
    note: str | None  # for whoever gave the picture; None where all went well


class CodecModule(Codec, Protocol):
    """An autoencoder as a module, which can be copied and cast."""

    def float(self) -> "CodecModule":
        """Itself, in float32."""


def decode_whole(autoencoder: Codec, z: Tensor) -> Tensor:
    """All of it at once: the plain way."""
    return autoencoder.decode(z)


def decode_safely(
    autoencoder: CodecModule, z: Tensor, decode: Callable[[Codec, Tensor], Tensor] = decode_whole
) -> Decoding:
    """Decode; where that overflows, decode again in float32 and say so.

    The autoencoder is left as it is: the second attempt works on a copy of it.

    Args:
        z: [B, C, h, w].
        decode: another way to decode with an autoencoder, such as ``tiling.decode_tiled``.

    Raises:
        NumericError: latents that are not finite, or a picture that is not even in float32.
    """
    if not z.isfinite().all():
        raise NumericError(
            "The latents contain NaN or infinity, so there is no picture to decode. The network overflowed or "
            "diverged: use float32 or bfloat16, less guidance, or another sampler."
        )
    pictures = decode(autoencoder, z)
    if pictures.isfinite().all():
        return Decoding(pictures, None)
    if pictures.dtype != torch.float32:
        again = decode(deepcopy(autoencoder).float(), z.float())
        if again.isfinite().all():
            return Decoding(again, f"The autoencoder overflowed in {_name(pictures)}: decoded in float32.")
    raise _damaged("finite latents")


def encode_whole(autoencoder: Codec, x: Tensor) -> Gaussian:
    """All of it at once: the plain way."""
    return autoencoder.encode(x)


def encode_safely(
    autoencoder: CodecModule, x: Tensor, encode: Callable[[Codec, Tensor], Gaussian] = encode_whole
) -> Encoding:
    """Encode; where that overflows, encode again in float32 and say so.

    The autoencoder is left as it is: the second attempt works on a copy of it.

    Args:
        x: [B, 3, H, W] in [-1, 1].
        encode: another way to encode with an autoencoder, such as ``tiling.encode_tiled``.

    Raises:
        NumericError: pictures that are not finite, or latents that are not even in float32.
    """
    if not x.isfinite().all():
        raise NumericError("The picture to be encoded contains NaN or infinity: it was damaged before it came here.")
    latents = encode(autoencoder, x)
    if latents.mean.isfinite().all():
        return Encoding(latents, None)
    if latents.mean.dtype != torch.float32:
        again = encode(deepcopy(autoencoder).float(), x.float())
        if again.mean.isfinite().all():
            return Encoding(again, f"The autoencoder overflowed in {_name(latents.mean)}: encoded in float32.")
    raise _damaged("finite pictures")


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _damaged(given: str) -> NumericError:
    return NumericError(
        f"The autoencoder made NaN or infinity of {given} in float32. Its weights are damaged, or belong to another "
        "latent space."
    )
