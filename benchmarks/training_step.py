"""A training step beside diffusers': its ``train_text_to_image.py`` as it is run, and what cached latents save.

Both sides train one U-Net from the same weights on the same pictures and captions, with the same times and noises, loss
and AdamW. sfumato's side is ``sfumato.training.loop`` itself, whose steps a gate counts; diffusers' is its script's
loop, written down here: pictures decoded and captions tokenised by a loader, accelerate around everything, autoencoder
and CLIP in every step. "On ready latents" is the same loop with what the two would say looked up. DiT has no script:
its rows run the same loop around diffusers' transformer. A subject's output is its losses and a layer's gradient.

The networks are Stable Diffusion's at half their width (a quarter of the work: 256 x 256 pictures, factor 8, CLIP-L's
12 layers), and a U-Net of its shape at a fifth. What caching saves hangs on these proportions alone: under the
autoencoder and the text encoder of true size it is more, with a denoiser of true size it is at most 1.6 times.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from threading import Thread
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.harness import Process, compare
from benchmarks.options import options
from benchmarks.report import Row, machine, report

PICTURES, BATCH = 8, 4
ROWS: dict[str, tuple[str, ...]] = {"unet": ("unet",), "dit": ("dit",), "space": ("pixels", "latents")}
"""By name: the networks that are trained. ``space``: one U-Net on pixels and on latents."""
TITLES = {"unet": "U-Net", "dit": "DiT-S/2"}
SCRIPT, READY = "diffusers, encoding", "diffusers, latents ready"
FRESH, CACHED = "sfumato, encoding", "sfumato, cached"
UNET: dict[str, Any] = {
    "block_out_channels": [64, 128, 256, 256], "attention_head_dim": 8, "cross_attention_dim": 384,
}
VAE: dict[str, Any] = {
    "block_out_channels": [64, 128, 256, 256], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "latent_channels": 4,
}
TEXT: dict[str, Any] = {
    "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6,
    "hidden_act": "quick_gelu", "projection_dim": 384, "eos_token_id": 49407, "bos_token_id": 49406,
}
PLAIN: dict[str, Any] = {
    "block_out_channels": [64, 128, 256], "layers_per_block": 1, "attention_head_dim": 8, "cross_attention_dim": 384,
    "down_block_types": ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
}
"""A U-Net that can be run on pixels: attention at a quarter of the side alone."""
CLASSES = 2
DIT: dict[str, Any] = {
    "num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 12, "out_channels": 4,
    "num_embeds_ada_norm": CLASSES,
}
"""DiT-S/2."""
Subject = tuple[Callable[[], Tensor], dict[str, str]]


def main(arguments: Sequence[str] = ()) -> None:
    flags = options(__doc__, 0, 4)
    flags.add_argument("--pixels", type=int, default=256, help="of a picture's side; the pixel run's have half of it")
    flags.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), help="these alone")
    chosen = flags.parse_args(list(arguments))
    torch.set_num_threads(1)
    about, rows = machine(), []
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        prepare(root, chosen.pixels, [kind for name in chosen.rows for kind in ROWS[name]])
        for name in (name for name in chosen.rows if name != "space"):
            subjects = chosen.of({
                SCRIPT: Process(diffusers, root, name, False), FRESH: Process(sfumato, root, name, False),
                READY: Process(diffusers, root, name, True), CACHED: Process(sfumato, root, name, True),
            })  # fmt: skip
            found = compare(f"training step, {TITLES[name]}", subjects, chosen.turns, limit=1e-3)
            rows.append(part(found, f"{found.name}, encoding each step or once", (SCRIPT, FRESH, CACHED)))
            rows.append(part(found, f"{found.name}, on ready latents", (READY, CACHED)))
            end(*subjects.values())
        if "space" in chosen.rows:
            subjects = {f"in {kind}": Process(sfumato, root, kind, True) for kind in ROWS["space"]}
            title = f"training step, one U-Net, pictures of {chosen.pixels // 2} pixels"
            rows.append(compare(title, subjects, min(chosen.turns, 2), limit=float("inf")))
            rows[-1].difference.clear()
            end(*subjects.values())
    for row in rows:
        for subject, measured in row.subjects.items():
            row.notes[f"{subject}, pictures/s"] = f"{BATCH / median(measured.seconds):.2f}"
    report("training_step", rows, about, chosen.trial)


def part(row: Row, name: str, wanted: tuple[str, ...]) -> Row:
    """Some of a row's subjects, the first of them the reference of times."""
    there = [subject for subject in wanted if subject in row.subjects]
    return Row(name, {s: row.subjects[s] for s in there}, {s: row.difference[s] for s in there}, notes=dict(row.notes))


def end(*subjects: Process) -> None:
    for subject in subjects:
        subject.end()


def side(root: Path) -> int:
    """Pixels of a picture's side."""
    return int((root / "pixels.txt").read_text())


def prepare(root: Path, pixels: int, kinds: list[str]) -> None:
    """Pictures in two classes and with captions; every network with random weights; the caches, with their time."""
    import time

    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from benchmarks.dit_step import weights
    from sfumato.core.config import from_dict
    from sfumato.models.dit import DiTConfig
    from sfumato.text.tokenizer import builtin

    (root / "pixels.txt").write_text(str(pixels))
    drawn = np.random.default_rng(0)
    for i in range(PICTURES):
        name = f"{i % CLASSES}/{i}"
        coarse = Image.fromarray(drawn.integers(0, 256, (16, 16, 3), np.uint8))
        for folder in (root / "pictures", root / "classes"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            coarse.resize((pixels, pixels), Image.Resampling.BICUBIC).save(folder / f"{name}.jpg", quality=95)
        (root / "pictures" / f"{name}.txt").write_text(f"a picture of the number {i}")
    torch.manual_seed(0)
    made: dict[str, Any] = {
        "vae": AutoencoderKL(**VAE), "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT)),  # type: ignore[no-untyped-call]
        "unet": UNet2DConditionModel(sample_size=pixels // 8, **UNET),  # type: ignore[no-untyped-call]
        "dit": weights(from_dict(DiTConfig, {**DIT, "sample_size": pixels // 8})),
        "latents": UNet2DConditionModel(**PLAIN),  # type: ignore[no-untyped-call]
        "pixels": UNet2DConditionModel(in_channels=3, out_channels=3, **PLAIN),  # type: ignore[no-untyped-call]
    }
    for name, network in made.items():
        network.save_pretrained(root / name)
    (root / "tokenizer").mkdir()
    builtin().save(root / "tokenizer")
    for kind in (kind for kind in kinds if kind != "pixels"):
        began = time.perf_counter()
        stage_of(root, kind, True)
        print(f"{kind}: frozen encoders run once over {PICTURES} pictures: {time.perf_counter() - began:.1f} s")


def stage_of(root: Path, kind: str, cached: bool) -> Any:
    """sfumato's stage, with no caption dropped, as diffusers' script drops none."""
    from sfumato.core.config import from_dict
    from sfumato.training.material import Material
    from sfumato.training.recipe import Recipe
    from sfumato.training.stages.diffusion import DiffusionTraining

    classes, pixels = kind == "dit", kind == "pixels"
    resolution = side(root) if kind in ("unet", "dit") else side(root) // 2
    told: dict[str, Any] = {
        "start": str(root / kind), "cache": cached, "drop": 0.0, "conditioning": "class" if classes else "text",
        "space": "pixel" if pixels else "latent", "autoencoder": str(root / "vae"), "text_encoder": str(root),
        "train": {
            "steps": 10**6, "batch": BATCH, "save_every": 10**6, "log_every": 10**6, "trackers": [],
            "ema": {"kind": "none"}, "rate": {"learning_rate": 1e-4, "schedule": "constant"},
        },
    }  # fmt: skip
    if classes or pixels:
        del told["autoencoder" if pixels else "text_encoder"]
    where = root / ("classes" if classes else "pictures")
    recipe = from_dict(Recipe, {"data": {"where": str(where), "resolution": resolution}, "diffusion": told})
    return DiffusionTraining(recipe, Material(recipe.data, recipe.seed), root / "runs" / kind)


class Watched:
    """Losses and a layer's gradient of the steps of one turn, as the output that is compared."""

    def __init__(self, network: torch.nn.Module, kind: str) -> None:
        layer = "transformer_blocks.5.attn1.to_q.weight" if kind == "dit" else "mid_block.resnets.0.conv1.weight"
        self.losses: list[float] = []
        self.gradient = torch.zeros(1)
        network.get_parameter(layer).register_hook(self.see)  # type: ignore[no-untyped-call]

    def see(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach().double()

    def output(self) -> Tensor:
        """[losses, log of the gradient's length, its direction]: each counts as much as the others."""
        length = self.gradient.norm()
        found = torch.cat([torch.tensor([*self.losses, length.log()]), self.gradient.flatten() / length])
        self.losses.clear()
        return found


def sfumato(root: Path, kind: str, cached: bool) -> Subject:
    from sfumato.engine.allocator import keep_freed_memory
    from sfumato.training.loop import train

    keep_freed_memory()  # as `sfumato train` does
    torch.set_num_threads(1)
    stage = stage_of(root, kind, cached)
    watched = Watched(stage.network.unet, kind)
    go: SimpleQueue[None] = SimpleQueue()
    arrived: SimpleQueue[None] = SimpleQueue()
    losses = stage.losses

    def gated(players: Mapping[str, torch.nn.Module], batch: dict[str, Tensor], step: int) -> Iterator[Any]:
        arrived.put(None)
        go.get()
        for name, loss in losses(players, batch, step):
            watched.losses.append(loss.total.item())
            yield name, loss

    def run() -> None:
        torch.set_num_threads(1)
        train(stage, stage.config.train, root / "runs" / f"{kind} {cached}", {}, 0, lambda text: None)

    stage.losses = gated
    Thread(target=run, daemon=True).start()
    arrived.get()

    def turn() -> Tensor:
        """One step, from where its loss is asked for to where the next step's is."""
        go.put(None)
        arrived.get()
        return watched.output()

    return turn, {}


class Shown(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The batch of each step, as the script's data set and collation make it, with the draws of sfumato's places."""

    def __init__(self, root: Path, kind: str, tokenizer: Any) -> None:
        from sfumato.training.order import Order
        from sfumato.training.readers import open_dataset

        data = open_dataset(str(root / ("classes" if kind == "dit" else "pictures")))
        self.items = [data.item(i) for i in range(len(data))]
        self.tokenizer, self.order, self.side = tokenizer, Order.of(PICTURES, 0, BATCH), side(root) // 8

    def __len__(self) -> int:
        return 1000  # steps, more than are asked for

    def picture(self, index: int) -> Tensor:
        """[3, H, W] in [-1, 1], decoded anew."""
        path = self.items[index].picture
        assert isinstance(path, Path)
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255 * 2 - 1

    def ids(self, index: int) -> Tensor:
        found: Tensor = self.tokenizer(
            self.items[index].caption, max_length=77, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids[0]
        return found

    def draws(self, step: int) -> dict[str, Tensor]:
        from sfumato.training.order import normals

        places, shape = self.order.places(step), (4, self.side, self.side)
        quantiles = torch.tensor([p.uniform(0, "time")[0] for p in places])
        return {
            "items": torch.tensor([p.item for p in places]), "time": (quantiles * 1000).long(),
            "noise": normals(places, 0, "noise", shape), "latent_noise": normals(places, 0, "latent", shape),
        }

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        batch = self.draws(step)
        items = batch["items"].tolist()
        batch["pixels"] = torch.stack([self.picture(i) for i in items])
        if self.tokenizer is None:
            batch["labels"] = torch.tensor([self.items[i].label for i in items])
        else:
            batch["ids"] = torch.stack([self.ids(i) for i in items])
        return batch


class Ready(Shown):
    """The same with what the frozen encoders say of each item, asked once."""

    def __init__(self, root: Path, kind: str, tokenizer: Any, vae: Any, text: Any) -> None:
        super().__init__(root, kind, tokenizer)
        with torch.no_grad():
            found = [vae.encode(self.picture(i)[None]).latent_dist for i in range(PICTURES)]
            self.mean, self.std = torch.cat([f.mean for f in found]), torch.cat([f.std for f in found])
            if text is not None:
                self.states = torch.cat([text(self.ids(i)[None], return_dict=False)[0] for i in range(PICTURES)])
        self.scale = vae.config.scaling_factor

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        batch = self.draws(step)
        items = batch["items"]
        batch["latents"] = (self.mean[items] + self.std[items] * batch["latent_noise"]) * self.scale
        if self.tokenizer is None:
            batch["labels"] = torch.tensor([self.items[i].label for i in items.tolist()])
        else:
            batch["states"] = self.states[items]
        return batch


def diffusers(root: Path, kind: str, ready: bool) -> Subject:
    from accelerate import Accelerator
    from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel, UNet2DConditionModel
    from diffusers.optimization import get_scheduler
    from torch.utils.data import DataLoader
    from transformers import CLIPTextModel, CLIPTokenizer

    torch.set_num_threads(1)
    accelerator = Accelerator(gradient_accumulation_steps=1)
    kind_of: Any = DiTTransformer2DModel if kind == "dit" else UNet2DConditionModel
    autoencoder_of: Any = AutoencoderKL
    network, vae = kind_of.from_pretrained(root / kind), autoencoder_of.from_pretrained(root / "vae")
    vae.requires_grad_(False)
    text: Any = None
    tokenizer: Any = None
    if kind == "dit":
        network.eval()  # in training mode it drops classes by draws of its own
    else:
        tokenizer, text = CLIPTokenizer.from_pretrained(root / "tokenizer"), CLIPTextModel.from_pretrained(
            root / "text_encoder"
        )
        text.requires_grad_(False)
        network.train()
    watched = Watched(network, kind)
    scheduler: Any = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)  # type: ignore[no-untyped-call]
    optimizer: Any = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    shown = Ready(root, kind, tokenizer, vae, text) if ready else Shown(root, kind, tokenizer)
    loader: Any = DataLoader(shown, batch_size=None)
    rate: Any = get_scheduler("constant", optimizer=optimizer, num_warmup_steps=0, num_training_steps=1000)
    network, optimizer, loader, rate = accelerator.prepare(network, optimizer, loader, rate)
    if ready:
        del vae, text

    def step(batch: dict[str, Tensor]) -> None:
        with accelerator.accumulate(network):
            if ready:
                x = batch["latents"]
            else:  # its latents carry no gradient, since its autoencoder takes none
                found = vae.encode(batch["pixels"]).latent_dist
                x = (found.mean + found.std * batch["latent_noise"]) * vae.config.scaling_factor
            noise, time = batch["noise"], batch["time"]
            noisy = scheduler.add_noise(x, noise, time)
            if kind == "dit":
                said = network(noisy, time, class_labels=batch["labels"], return_dict=False)[0]
            else:
                states = batch["states"] if ready else text(batch["ids"], return_dict=False)[0]
                said = network(noisy, time, states, return_dict=False)[0]
            loss = F.mse_loss(said.float(), noise.float(), reduction="mean")
            watched.losses.append(accelerator.gather(loss.repeat(BATCH)).mean().item())
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()

    source = iter(loader)

    def turn() -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            step(next(source))
        return watched.output()

    return turn, {}


if __name__ == "__main__":
    main(sys.argv[1:])
