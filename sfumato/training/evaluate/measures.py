"""What can be measured of a subject: a table of functions from it to figures."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sfumato.core.errors import ConfigError
from sfumato.models.perceptual import Vgg16
from sfumato.training.evaluate.captions import choose, numbered
from sfumato.training.evaluate.captions import read as read_captions
from sfumato.training.evaluate.distributions import distances
from sfumato.training.evaluate.likeness import psnr, ssim
from sfumato.training.evaluate.retrieval import chance, hits, retrieval
from sfumato.training.evaluate.scoring import check_all
from sfumato.training.evaluate.subject import Subject
from sfumato.training.evaluate.sweep import sweep
from sfumato.training.framing import to_network
from sfumato.training.grid import save_grid

Figures = dict[str, Any]


def reconstruction(subject: Subject, folder: Path) -> Figures:
    """Held-out pictures through the autoencoder and back: PSNR (dB), SSIM and, with weights, LPIPS."""
    items = subject.material.held_out or subject.material.training
    totals: dict[str, list[torch.Tensor]] = {"psnr": [], "ssim": []}
    for start in range(0, len(items), 64):
        before = subject.pixels(items[start : start + 64])
        after = subject.coder.back(before)
        totals["psnr"].append(psnr(before, after))
        totals["ssim"].append(ssim(before, after))
        if subject.perceptual is not None:
            with torch.inference_mode():
                pair = (to_network(x.to(subject.device)) for x in (before, after))
                name = "lpips" if isinstance(subject.perceptual.net, Vgg16) else "clip_distance"
                totals.setdefault(name, []).append(subject.perceptual(*pair).cpu())
    means = {name: torch.cat(parts).mean().item() for name, parts in totals.items()}
    return {**means, "pictures": len(items), "held_out": bool(subject.material.held_out)}


def find_each_other(subject: Subject, folder: Path) -> Figures:
    """Held-out pictures and their captions in CLIP's space: who finds whom, beside chance."""
    items = [i for i in subject.material.held_out or subject.material.training if subject.material.captions[i]][:1000]
    captions = [subject.material.captions[i] for i in items]
    found = retrieval(
        subject.clip.texts(captions), subject.clip.pictures(subject.pixels(items)), numbered(captions, captions)
    )
    return {**found, "pictures": len(items), "held_out": bool(subject.material.held_out), "clip": subject.clip.name}


def nearest(subject: Subject, folder: Path) -> Figures:
    """Training captions drawn with one seed: is the nearest training picture, in latents, one of the same caption?"""
    material = subject.material
    there = [material.captions[i] for i in material.training]
    config = subject.config
    captions = read_captions(config.captions) if config.captions else choose(there, config.pictures)
    strange = sorted(set(captions) - set(there))
    if strange:
        raise ConfigError(f"{config.captions}: {len(strange)} captions are of no training picture: {strange[0]!r}, …")
    pictures = subject.draw(captions, same_seed=True)
    save_grid(folder / "nearest.png", list(to_network(pictures)), 20)
    drawn, real = (subject.coder.pictures(x).double() for x in (pictures, subject.pixels(material.training)))
    right, labels = numbered(captions, there), numbered(there, there)
    figures = {f"top{k}": value for k, value in hits(-torch.cdist(drawn, real), right, labels).items()}
    figures |= {f"chance_top{k}": value for k, value in chance(right, labels).items()}
    return {**figures, "captions": len(captions), "training_pictures": len(there)}


def drawn(subject: Subject, folder: Path) -> Figures:
    """Pictures of captions, held-out ones first: FID, KID, precision, recall; how near CLIP finds them to the words."""
    material = subject.material
    items = [i for i in (*material.held_out, *material.training) if material.captions[i]][: subject.config.pictures]
    captions = [material.captions[i] for i in items]
    pictures = subject.draw(captions)
    save_grid(folder / "drawn.png", list(to_network(pictures)), 20)
    found = distances(subject.features.pictures(subject.real()), subject.features.pictures(pictures))
    figures: Figures = {**found._asdict(), "features": subject.features.name, "pictures": len(items)}
    if subject.has_clip:
        texts, same = subject.clip.texts(captions), numbered(captions, captions)
        figures["clip"] = retrieval(texts, subject.clip.pictures(pictures), same)
        figures["clip_of_real_pictures"] = retrieval(texts, subject.clip.pictures(subject.pixels(items)), same)
    return figures


def scenes(subject: Subject, folder: Path) -> Figures:
    """Captions of shapes that were never trained on: the checker's score, beside that of the data set's pictures."""
    captions = subject.unseen()
    pictures = subject.draw(captions)
    save_grid(folder / "shapes.png", list(to_network(pictures)), 20)
    items = subject.material.training[: subject.config.pictures]
    real = check_all(subject.pixels(items), [subject.material.captions[i] for i in items])
    return {**check_all(pictures, captions), "of_real_pictures": real, "captions": len(captions)}


class Measure(NamedTuple):
    """One line of the table."""

    run: Callable[[Subject, Path], Figures]
    possible: Callable[[Subject], bool]
    needs: str


def draws(subject: Subject) -> bool:
    """Whether the folder is a model that draws from captions."""
    whole = (subject.parts / "model_index.json").is_file() and subject.has("text_encoder") and subject.has("vae")
    return whole and any(subject.material.captions)


MEASURES: Mapping[str, Measure] = {
    "reconstruction": Measure(reconstruction, lambda s: s.has("vae"), "an autoencoder (vae)"),
    "retrieval": Measure(find_each_other, lambda s: s.has_clip and any(s.material.captions), "a CLIP, and captions"),
    "nearest": Measure(nearest, lambda s: draws(s) and not s.scenes, "a model that draws, and captions that name"),
    "drawn": Measure(drawn, draws, "a model that draws, and captions"),
    "shapes": Measure(scenes, lambda s: draws(s) and s.scenes, "a model that draws, and data of `sfumato data shapes`"),
    "sweep": Measure(sweep, draws, "a model that draws, and captions"),
}
USUAL = ("reconstruction", "retrieval", "nearest", "drawn", "shapes")
"""What is measured where nothing is named."""
