"""The network in which pictures are compared as they look: given weights, or a CLIP trained here."""

from pathlib import Path

import torch

from sfumato.checkpoints.load import load_into
from sfumato.checkpoints.store import open_file
from sfumato.models.clip_features import ClipFeatures
from sfumato.models.perceptual import Perceptual, Vgg16
from sfumato.training.evaluate.clip_folder import open_clip


def open_perceptual(weights: Path, device: torch.device) -> Perceptual:
    """A distance of pictures, frozen.

    Args:
        weights: a file of VGG-16's and LPIPS's weights: then it is LPIPS; or the folder of a CLIP, as ``RUN/clip``,
            in the states of whose picture tower all channels count alike.

    Raises:
        CheckpointError: they do not fit, or the folder holds no CLIP.
    """
    if weights.is_dir():
        return Perceptual(ClipFeatures(open_clip(weights, device).vision_model)).to(device)
    tensors = open_file(weights).tensors
    # Published files of VGG-16 hold its classifier too, which nothing here asks.
    found = {f"net.{n}" if n.startswith("features.") else n: t for n, t in tensors.items() if "classifier" not in n}
    return load_into(lambda: Perceptual(Vgg16()), found, str(weights), device=device).requires_grad_(False)
