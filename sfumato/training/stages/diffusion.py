"""Training a denoiser: on latents or pixels, told nothing, a class, or a text."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from PIL.Image import Image
from torch import Tensor, nn

from sfumato.adapters.file import merged, open_adapter, recognise
from sfumato.adapters.trained import FILE
from sfumato.checkpoints.diffusers import read_part
from sfumato.checkpoints.parts import Part
from sfumato.core.errors import ConfigError, DataError
from sfumato.engine.pack import FAST, pack
from sfumato.families.dit import class_of
from sfumato.models.clip_text import ClipText
from sfumato.models.dit import DiT, unshared
from sfumato.models.latents import Codec, Gaussian
from sfumato.models.unet import UNet
from sfumato.models.unet_unconditional import UnconditionalUNet
from sfumato.nn.conditioning import Conditioning
from sfumato.noise.prediction import PREDICTIONS
from sfumato.objectives.denoise import Denoise, Draws
from sfumato.objectives.loss import Loss
from sfumato.sampling.diffusers_config import from_diffusers
from sfumato.text import tokenizer as tokenizers
from sfumato.training import lora_file
from sfumato.training.cache import Rows, fill, fingerprint
from sfumato.training.export import put_index, put_part, put_scheduler, put_tokenizer
from sfumato.training.framing import to_network
from sfumato.training.grid import save_grid
from sfumato.training.loop import Batch
from sfumato.training.lora import attach
from sfumato.training.material import Material
from sfumato.training.order import Order, Place, normals
from sfumato.training.plain_drawing import draw
from sfumato.training.recipe import DiffusionStage, Recipe
from sfumato.training.stages.clip import framed_ids
from sfumato.training.start import Start, begin, open_start, settle, shared_embedding

EVALUATED = 256
"""Held-out pictures on which the loss is measured, at most; each at one time and with one noise, always the same."""

HELD_OUT_EPOCH = 1 << 20
"""An epoch that no training reaches: its places draw the held-out times and noises."""


TABLES = {
    "UNet2DConditionModel": "unet", "UNet2DModel": "unconditional", "DiTTransformer2DModel": "dit",
    "Transformer2DModel": "dit",
}
"""Class of a network that may be gone on from -> the recipe's table of it."""

TOKENIZERS_OWN = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
"""Settings of a text encoder that follow from its tokenizer."""

TELL_EVERY = 10.0
"""Seconds between lines about what frozen encoders have done."""

SHOWN = 8
"""Pictures drawn for the eye where the recipe does not say of what."""

Network = UNet | UnconditionalUNet | DiT


class Denoiser(nn.Module):
    """The network, and the text encoder where both are trained together, as one call."""

    def __init__(self, unet: Network, text: ClipText | None, checkpointing: bool) -> None:
        super().__init__()
        self.unet, self.text, self.checkpointing = unet, text, checkpointing

    def forward(self, x: Tensor, time: Tensor, told: Batch) -> Tensor:
        """[B, C, H, W], [B], and ``ids``, ``context`` or ``labels`` of each row -> [B, C or 2 C, H, W]."""
        context = self.text(told["ids"]).last if self.text is not None else told.get("context")
        conditioning = Conditioning(context=context, labels=told.get("labels"))
        more: dict[str, Any] = {"run": _again} if self.checkpointing and torch.is_grad_enabled() else {}
        y: Tensor = self.unet(x, time, conditioning, **more)
        return y


def _again(module: nn.Module, *inputs: Any) -> Tensor:
    """Run a block and forget its inside, which is computed again for the gradient."""
    from torch.utils.checkpoint import checkpoint

    y: Tensor = checkpoint(module, *inputs, use_reentrant=False)
    return y


class DiffusionTraining:
    """The stage. With it the run folder is a model: ``unet``, ``scheduler``, ``model_index.json`` beside the rest."""

    name = "diffusion"
    sharded = True

    def __init__(self, recipe: Recipe, material: Material, root: Path) -> None:
        assert recipe.diffusion is not None
        self.config: DiffusionStage = recipe.diffusion
        self.recipe, self.material, self.root, self.seed = recipe, material, root, recipe.seed
        self.start = None if self.config.start is None else open_start(self.config.start, self.config.prediction)
        begun = None if self.start is None else self._settle(self.start)
        self.objective = Denoise(self.config.loss, self.config.schedule.build(), PREDICTIONS[self.config.prediction])
        if self.config.cache and self.config.space == "latent" and material.config.framing.crop == "random":
            raise ConfigError("Random crops cannot be cached: set diffusion.cache = false, or center the crop.")
        if self.config.conditioning == "class" and not material.classes:
            raise DataError(f"{material.config.where} has no classes: use conditioning none or text.")
        if self.config.conditioning == "text" and not any(material.captions):
            raise DataError(f"{material.config.where} has no captions: use conditioning none or class.")
        if self.config.conditioning != "text":
            for prompt in self.config.prompts:
                self._class(prompt)  # one that cannot be drawn is refused now
        torch.manual_seed(recipe.seed)
        self.codec: Codec | None = None
        self.scale, self.shift = 1.0, 0.0
        if self.config.space == "latent":
            self._open_autoencoder()
        self.frozen: ClipText | None = None
        text = self._open_text() if self.config.conditioning == "text" else None
        lora, side = self.config.lora, material.config.resolution // (1 if self.codec is None else self.factor)
        if self.config.dit is not None:
            self._check_patches(side, self.config.dit.patch_size)
        if lora is not None:
            assert begun is not None
            unet: Network = begun.load(torch.float32).train()  # views of its file, where that has this precision
        elif self.config.unet is not None:
            unet = UNet(self.config.unet)
        elif self.config.dit is not None:
            unet = DiT(replace(self.config.dit, sample_size=side), shared=True)
        else:
            assert self.config.unconditional is not None
            unet = UnconditionalUNet(self.config.unconditional)
        self._check_channels(unet)
        self.rates = {"denoiser": 1.0}
        if lora is not None:
            attach(unet, lora, lora.targets, "denoiser")
            if text is not None:
                attach(text, lora, lora.text_targets, "text encoder")
                self.rates["denoiser.text"] = lora.text_rate
        elif begun is not None:
            begin(unet, begun, shared_embedding(begun) if isinstance(unet, DiT) else None)
        self.network = Denoiser(unet, text, self.config.train.gradient_checkpointing)
        self.players: dict[str, nn.Module] = {"denoiser": self.network}
        self.latents: Rows | None = None
        self.states: dict[str, Tensor] = {}
        if self.config.cache:
            self._fill_caches()

    def _settle(self, start: Start) -> Part:
        """The network to go on from, whose config is the recipe's from now on."""
        texts = self.config.conditioning == "text"
        if self.config.lora is not None:
            if "" in start.parts:
                raise ConfigError(f"start = {start.source!r} is a network alone, and a LoRA changes a model: name one.")
            if self.config.lora.text and not texts:
                raise ConfigError(f"lora.text = true: conditioning = {self.config.conditioning!r} reads no text.")
        part = start.part(tuple(kind for kind, table in TABLES.items() if (table == "unet") == texts))
        name = TABLES[part.kind]
        given = self.config.unet or self.config.unconditional or self.config.dit
        config = settle(part, given, f"diffusion.{name}")
        for more in ("addition_embed_type", "class_embed_type"):
            if getattr(config, more, None) is not None:
                raise ConfigError(f"{part.where}: {more} = {getattr(config, more)!r} is not trained here.")
        self.config = replace(self.config, **{name: config})
        start.agree(from_diffusers(scheduler_config(self.config)))
        return part

    def _open_autoencoder(self) -> None:
        """The recipe's, the run's own, or that of the model to go on from."""
        folder = self.config.autoencoder or self.root / "vae"
        given = None if self.start is None else self.start.parts.get("vae")
        if self.config.autoencoder is None and self.recipe.autoencoder is None and given is not None:
            part = given
        elif (folder / "config.json").is_file():
            part = read_part(folder)
        else:
            raise ConfigError(f"There is no autoencoder in {folder}: train one first, or name one with autoencoder.")
        codec = part.load(torch.float32).requires_grad_(False)
        self.codec, self.factor = codec, codec.factor
        frozen = cast(nn.Module, codec)
        if self.config.cache:
            self.latents_key = fingerprint(frozen, "latents 1", self.material.config.framing.flip > 0)
        if self.config.train.precision == "no" and _device().type == "cpu":
            for half in ("encoder", "decoder"):  # whose weights are few beside what they make of pictures
                pack(frozen.get_submodule(half), FAST)
        self.scale, self.shift = part.config.scaling_factor, getattr(part.config, "shift_factor", None) or 0.0
        self.latent_channels = getattr(part.config, "dim", part.config.latent_channels)
        self.codec_part = part

    def _open_text(self) -> ClipText | None:
        """The tokenizer, and the text encoder: given back where it is to be trained, else kept frozen."""
        config = self.config
        given = None if self.start is None else self.start.parts.get("text_encoder")
        if given is not None and config.text_encoder is None and self.recipe.clip is None:
            assert self.start is not None
            self.tokenizer, self.text_config = self.start.tokenizers["tokenizer"], given.config
            if config.lora is not None and config.lora.text:
                encoder: ClipText = given.load(torch.float32).train()
                return encoder
            if config.text is None:
                self.frozen = given.load(torch.float32).requires_grad_(False)
                return None
            of_tokenizer = {name: getattr(given.config, name) for name in TOKENIZERS_OWN}
            settle(given, replace(config.text, **of_tokenizer), "diffusion.text")
            begin(encoder := ClipText(given.config), given)
            return encoder
        if config.text is not None:
            self.tokenizer = tokenizers.train(self.material.texts(self.material.training), config.vocab_size)
            self.tokenizer.length = config.text.max_position_embeddings
            self.text_config = replace(
                config.text, vocab_size=len(self.tokenizer), bos_token_id=self.tokenizer.start,
                eos_token_id=self.tokenizer.end, pad_token_id=self.tokenizer.pad,
            )
            return ClipText(self.text_config)
        folder = config.text_encoder or self.root
        if not (folder / "text_encoder" / "config.json").is_file():
            raise ConfigError(f"{folder} has no text_encoder: train CLIP first, name a folder, or give the table text.")
        self.tokenizer = tokenizers.load(folder / "tokenizer")
        part = read_part(folder / "text_encoder")
        self.text_config, self.frozen = part.config, part.load(torch.float32).requires_grad_(False)
        return None

    def _check_patches(self, side: int, patch: int) -> None:
        buckets = self.material.config.buckets
        if buckets or side % patch:
            raise ConfigError(
                f"[diffusion.dit] is trained on latents of one size, which patches of {patch} divide; here they "
                f"{'have many (data.buckets)' if buckets else f'are {side} x {side}'}."
            )

    def _check_channels(self, unet: Network) -> None:
        if isinstance(unet, DiT):
            gives, known = unet.config.predicted_channels, unet.config.num_embeds_ada_norm
        else:
            gives = unet.config.out_channels
            known = (getattr(unet.config, "num_class_embeds", None) or 0) - 1
        channels = self.latent_channels if self.codec is not None else 3
        wanted = (channels, channels * (2 if self.config.loss.learned_variance else 1))
        if (unet.config.in_channels, gives) != wanted:
            raise ConfigError(
                f"The network takes {unet.config.in_channels} channels and gives {gives}; here it "
                f"must be {wanted[0]} and {wanted[1]}."
            )
        if self.config.conditioning == "text" and self.text_config.hidden_size != unet.config.cross_attention_dim:  # type: ignore[union-attr]
            raise ConfigError(
                f"unet.cross_attention_dim has to be the width of the text states, {self.text_config.hidden_size}."
            )
        if self.config.conditioning == "class":
            classes = len(self.material.classes)
            if known != classes and isinstance(unet, DiT):
                raise ConfigError(f"num_embeds_ada_norm must be {classes}, the number of classes.")
            if known != classes:
                raise ConfigError(f"num_class_embeds must be {classes + 1}: {classes} classes, and one for none.")
        elif isinstance(unet, DiT) and known:
            raise ConfigError("num_embeds_ada_norm must be 0 where conditioning = 'none'.")

    def _fill_caches(self) -> None:
        """Latents of every picture and its mirror image; text states of every caption and of none."""
        if self.codec is not None:
            mirrored = self.material.config.framing.flip > 0
            contents = {i: self.material.content(i) for group in self.material.by_size() for i in group}
            self.latents = fill(
                self.root / "training" / "cache", "latents", self.material.by_size(), contents, self.latents_key,
                lambda items: self._encode_pictures(items, mirrored), progress=self._telling("pictures", len(contents)),
            )
        if self.frozen is not None:
            texts = ["", *sorted(set(self.material.texts()))]
            key = fingerprint(self.frozen, "text 2")
            shown = (repr(framed_ids(self.tokenizer, text)) for text in texts)
            contents = {i: hashlib.sha256(ids.encode()).hexdigest() for i, ids in enumerate(shown)}
            rows = fill(
                self.root / "training" / "cache", "text", [range(len(texts))], contents, key,
                lambda items: {"states": self._encode_texts([texts[i] for i in items])},
                progress=self._telling("captions", len(texts)),
            )
            self.states = {text: rows.row(i)["states"] for i, text in enumerate(texts)}

    def _telling(self, what: str, total: int) -> Callable[[int], None]:
        """A function that is told how many are encoded, and says so now and then where it takes long."""
        said = time.monotonic()

        def tell(done: int) -> None:
            nonlocal said
            if time.monotonic() - said > TELL_EVERY:
                said = time.monotonic()
                self.material.report(f"  {done:,} of {total:,} {what} encoded, once for all epochs")

        return tell

    @torch.no_grad()
    def _encode_pictures(self, items: list[int], mirrored: bool) -> dict[str, Tensor]:
        assert self.codec is not None
        assert isinstance(self.codec, nn.Module)
        self.codec.to(_device())
        x = self.material.pixels(items).to(_device())
        found = self.codec.encode(x)
        tensors = {"mean": found.mean, "log_variance": found.log_variance}
        if mirrored:
            other = self.codec.encode(x.flip(-1))
            tensors |= {"mean_mirrored": other.mean, "log_variance_mirrored": other.log_variance}
        return tensors

    @torch.no_grad()
    def _encode_texts(self, texts: list[str]) -> Tensor:
        assert self.frozen is not None
        ids = torch.tensor([framed_ids(self.tokenizer, text) for text in texts])
        states: Tensor = self.frozen.to(_device())(ids.to(_device())).last
        return states

    def order(self, batch: int) -> Order:
        return self.material.order(batch)

    def load(self, places: list[Place]) -> Batch:
        items = [self.material.training[p.item] for p in places]
        dropped = [bool(p.uniform(self.seed, "drop")[0] < self.config.drop) for p in places]
        quantiles = [p.uniform(self.seed, "time")[0] for p in places]
        return self._batch(items, places, dropped, quantiles, training=True)

    def _batch(
        self, items: list[int], places: list[Place], dropped: list[bool], quantiles: list[float], training: bool
    ) -> Batch:
        batch: Batch = {"quantile": torch.tensor(quantiles, dtype=torch.float64)}
        if self.latents is not None:
            batch["x0"] = self._latents(items, places, training)
            shape = tuple(batch["x0"].shape[1:])
        else:
            pixels = [
                self.material.framed(item, place if training else None).pixels
                for item, place in zip(items, places, strict=True)
            ]
            batch["pixels"] = torch.stack(pixels)
            shape = tuple(batch["pixels"].shape[1:])
            if self.codec is not None:
                shape = (self.latent_channels, shape[1] // self.factor, shape[2] // self.factor)
                batch["latent_noise"] = normals(places, self.seed, "latent", shape)
        batch["noise"] = normals(places, self.seed, "noise", shape)
        if self.config.loss.noise_offset:
            batch["offset"] = normals(places, self.seed, "offset", shape[:1])
        if self.config.loss.input_perturbation:
            batch["perturbation"] = normals(places, self.seed, "perturbation", shape)
        if self.config.conditioning == "text":
            texts = [
                "" if drop else self.material.caption(item, place if training else None)
                for item, place, drop in zip(items, places, dropped, strict=True)
            ]
            if self.states:
                batch["context"] = torch.stack([self.states[text] for text in texts])
            else:
                batch["ids"] = torch.tensor([framed_ids(self.tokenizer, text) for text in texts])
        elif self.config.conditioning == "class":
            none = len(self.material.classes)
            labels = [none if drop else self.material.labels[i] for i, drop in zip(items, dropped, strict=True)]
            batch["labels"] = torch.tensor(labels)
        return batch

    def _latents(self, items: list[int], places: list[Place], training: bool) -> Tensor:
        """Draws from the cached Gaussians of pictures, or of their mirror images, as the denoiser is to see them."""
        assert self.latents is not None
        framing = self.material.config.framing
        rows = [
            (self.latents.row(item), "_mirrored" if training and framing.flips(self.seed, place) else "")
            for item, place in zip(items, places, strict=True)
        ]
        mean, log_variance = (
            torch.stack([row[name + suffix] for row, suffix in rows]) for name in ("mean", "log_variance")
        )
        noise = normals(places, self.seed, "latent", tuple(mean.shape[1:]))
        return (Gaussian(mean, log_variance).sample(noise) - self.shift) * self.scale

    def _clean(self, batch: Batch) -> Tensor:
        """[B, C, h, w] what is to be denoised."""
        if "x0" in batch:
            return batch["x0"]
        x = to_network(batch["pixels"])
        if self.codec is None:
            return x
        with torch.no_grad():
            assert isinstance(self.codec, nn.Module)
            self.codec.to(x.device)
            return (self.codec.encode(x).sample(batch["latent_noise"]) - self.shift) * self.scale

    def _loss(self, network: nn.Module, batch: Batch) -> Loss:
        told = {key: batch[key] for key in ("ids", "context", "labels") if key in batch}
        if "ids" in told and self.frozen is not None:
            with torch.no_grad():
                told["context"] = self.frozen.to(batch["noise"].device)(told.pop("ids")).last
        draws = Draws(batch["quantile"], batch["noise"], batch.get("offset"), batch.get("perturbation"))
        return self.objective.loss(lambda x, time, _: network(x, time, told), self._clean(batch), Conditioning(), draws)

    def losses(self, players: Mapping[str, nn.Module], batch: Batch, step: int) -> Iterator[tuple[str, Loss]]:
        yield "denoiser", self._loss(players["denoiser"], batch)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The loss on held-out pictures at fixed times, spread evenly, and fixed noises."""
        items = self.material.held_out[:EVALUATED]
        device = next(self.network.parameters()).device
        total = 0.0
        number = {item: i for i, item in enumerate(items)}
        for part in self.material.batches(items):
            places = [Place(HELD_OUT_EPOCH, number[item], item) for item in part]
            quantiles = [(number[item] + 0.5) / len(items) for item in part]
            batch = self._batch(part, places, [False] * len(part), quantiles, training=False)
            loss = self._loss(self.network, {k: v.to(device) for k, v in batch.items()})
            total += loss.each.sum().item() / len(items)
        return {"loss": total} if items else {}

    def export(self, weights: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        if self.config.lora is not None:
            assert self.start is not None
            parts = {"unet": "unet" if self.config.dit is None else "transformer", "text": "text_encoder"}
            about = lora_file.header(self.recipe, self.config, self.start, progress["step"])
            lora_file.put(self.root / FILE, weights, parts, self.config.lora, about)
            return
        unet = {name.removeprefix("unet."): t for name, t in weights.items() if name.startswith("unet.")}
        side = self.material.config.resolution // (self.factor if self.codec is not None else 1)
        config = replace(self.network.unet.config, sample_size=side)
        kind = "UNet2DConditionModel" if self.config.unet is not None else "UNet2DModel"
        name, options = "unet", {}
        if self.config.dit is not None:
            name, kind, unet = "transformer", "DiTTransformer2DModel", unshared(unet, self.config.dit.num_layers)
            options = {"id2label": {str(i): title for i, title in enumerate(self.material.classes)}}
        put_part(self.root, name, kind, config, unet)
        parts = {name: kind}
        if self.codec is not None:
            if not (self.root / "vae").exists():
                part = self.codec_part
                put_part(self.root, "vae", part.kind, part.config, {n: t.read() for n, t in part.tensors.items()})
            parts["vae"] = read_part(self.root / "vae").kind
        if self.config.conditioning == "text":
            text = {name.removeprefix("text."): t for name, t in weights.items() if name.startswith("text.")}
            if self.frozen is not None:
                text = dict(self.frozen.state_dict())
            put_part(self.root, "text_encoder", "CLIPTextModel", self.text_config, text)
            put_tokenizer(self.root, self.tokenizer)
            parts["text_encoder"] = "CLIPTextModel"
        scheduler = scheduler_config(self.config)
        put_scheduler(self.root, scheduler)
        pipeline = "StableDiffusionPipeline" if self.config.conditioning == "text" else "DDPMPipeline"
        if self.config.dit is not None:
            pipeline = "DiTPipeline"
        put_index(self.root, pipeline, parts, scheduler["_class_name"], options)

    def sample(self, path: Path) -> None:
        prompts = self._prompts()
        if not prompts:
            return
        drawn: Sequence[Tensor | Image] = []
        if (self.config.conditioning == "text" or self.config.dit is not None) and self.codec is not None:
            pipeline, steps, scale = self._pipeline(), self.config.sample_steps, self.config.cfg_scale
            drawn = [pipeline(prompt, steps=steps, cfg_scale=scale, seed=seed).images[0]
                     for seed, prompt in enumerate(prompts)]  # fmt: skip
        else:
            drawn = list(self._draw(prompts))
        save_grid(path, drawn, min(8, len(drawn)))

    def _pipeline(self) -> Callable[..., Any]:
        """What draws with what was exported last: the run folder, or start's model with the LoRA."""
        from sfumato.tasks.pipeline import load

        if self.config.lora is None:
            return load(str(self.root))
        assert self.start is not None
        return partial(load(self.start.source, **self.start.options), loras=(str(self.root / FILE),))

    def _exported(self, name: str) -> Part:
        """A part of what was exported last."""
        if self.config.lora is None:
            return read_part(self.root / name)
        assert self.start is not None
        changes = recognise(open_adapter(self.root / FILE), self.start.parts)
        return merged(self.start.parts[name], name, [(changes, 1.0)])

    def _prompts(self) -> tuple[str, ...]:
        """What is drawn for the eye: the recipe's; or some classes, or nothing in particular; of texts, its alone."""
        if self.config.prompts or self.config.conditioning == "text":
            return self.config.prompts
        if self.config.conditioning == "class":
            return tuple(map(str, range(min(SHOWN, len(self.material.classes)))))
        return ("",) * SHOWN

    @torch.no_grad()
    def _draw(self, prompts: Sequence[str]) -> Tensor:
        """[N, 3, H, W], about [-1, 1]: models that no task opens."""
        device, config = _device(), self.config
        side = self.material.config.resolution // (self.factor if self.codec is not None else 1)
        shape = (self.latent_channels if self.codec is not None else 3, side, side)
        told = {"positive": self._told(prompts, device), "negative": self._told([""] * len(prompts), device)}
        scale = 1.0 if config.conditioning == "none" else config.cfg_scale
        x = draw(
            self._exported("unet").load(torch.float32, device), from_diffusers(scheduler_config(config)), told,
            shape, range(len(prompts)), config.sample_steps, scale, device,
        )
        if self.codec is None:
            return x
        assert isinstance(self.codec, nn.Module)
        return self.codec.to(device).decode(x / self.scale + self.shift)

    def _told(self, prompts: Sequence[str], device: torch.device) -> Conditioning:
        """What the network is told of each."""
        if self.config.conditioning == "none":
            return Conditioning()
        if self.config.conditioning == "class":
            return Conditioning(labels=torch.tensor([self._class(prompt) for prompt in prompts], device=device))
        ids = torch.tensor([framed_ids(self.tokenizer, prompt) for prompt in prompts])
        encoder = self._exported("text_encoder").load(torch.float32, device)
        return Conditioning(context=encoder(ids.to(device)).last)

    def _class(self, prompt: str) -> int:
        """The number of the class that a prompt names; that of none where it is empty."""
        classes = self.material.classes if self.config.conditioning == "class" else ()
        return class_of(prompt, len(classes), dict(enumerate(classes)))


def scheduler_config(config: DiffusionStage) -> dict[str, Any]:
    """How the model is sampled, in the words of diffusers' scheduler_config.json."""
    schedule = config.schedule
    if schedule.kind == "flow":
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": schedule.shift}
    return {
        "_class_name": "DDIMScheduler", "num_train_timesteps": schedule.steps, "beta_schedule": schedule.kind,
        "beta_start": schedule.start, "beta_end": schedule.end, "prediction_type": config.prediction,
        "clip_sample": config.space == "pixel", "set_alpha_to_one": False, "steps_offset": 1,
        "timestep_spacing": "trailing" if schedule.zero_terminal_snr else "leading",
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        # DDIM does not use it; DDPM in its place will.
        **({"variance_type": "learned_range"} if config.loss.learned_variance else {}),
    }


def _device() -> torch.device:
    """Where the frozen encoders run while a cache is filled."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
