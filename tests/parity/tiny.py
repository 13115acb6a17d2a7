"""Tiny checkpoint folders of every family, made by diffusers and transformers with random weights.

Small enough for seconds, complete enough to go through every file that a real folder has.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel

WORDS = ["a", "red", "apple", "on", "the", "table", "blue", "star", "photo", "of", ",", "cat"]


def tokenizer_files(folder: Path, pad: str = "<|endoftext|>") -> Path:
    """A CLIP tokenizer's files with a vocabulary of bytes and a few merges, as transformers reads them."""
    letters = sorted(ByteLevel.alphabet())
    merges, vocabulary = [], letters + [letter + "</w>" for letter in letters]
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            if pair not in merges:
                merges.append(pair)
                vocabulary.append("".join(pair))
            parts[:2] = ["".join(pair)]
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    config = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": pad,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    special = {k: config[k] for k in ("bos_token", "eos_token", "unk_token", "pad_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return folder


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Weights that leave no layer trivial: norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        spread = 0.02 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        parameter.data = noise * spread + (parameter.data if parameter.ndim < 2 else 0)


def unet(**changes: Any) -> Any:
    """A U-Net of two levels with attention in both."""
    import diffusers

    config = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "norm_num_groups": 16,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 32, "attention_head_dim": 4,
    }
    make: Any = diffusers.UNet2DConditionModel
    return make(**{**config, **changes})


def controlnet(unet: Any, **changes: Any) -> Any:
    """A control network for a U-Net, as narrow as it can be, that has something to say from the beginning."""
    import diffusers

    cls: Any = diffusers.ControlNetModel
    made = cls.from_unet(
        unet, load_weights_from_unet=False, conditioning_embedding_out_channels=(4, 4, 8, 8), **changes
    )
    randomise(made, seed=9)
    return made.eval()


def autoencoder(scaling_factor: float = 0.18215, **changes: Any) -> Any:
    """A KL autoencoder of factor 8, as narrow as it can be."""
    import diffusers

    make: Any = diffusers.AutoencoderKL
    return make(
        block_out_channels=(16, 16, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=8,
        sample_size=64, scaling_factor=scaling_factor, **changes,
    )


def tiny_autoencoder() -> Any:
    """A TAESD of factor 8, as narrow as it can be."""
    import diffusers

    torch.manual_seed(7)
    make: Any = diffusers.AutoencoderTiny
    widths = (8, 8, 8, 8)
    return make(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1), latent_channels=4,
    )


def text_encoder(vocabulary: int, width: int = 32, projection: bool = False, layers: int = 3, **changes: Any) -> Any:
    """A CLIP text tower; the id of the end token is the last of the vocabulary, as in the real one."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=77, projection_dim=width, bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1, **changes,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


LABELS = {"0": "tench, Tinca tinca", "1": "goldfish", "2": "crane", "3": "crane, hoist"}


def dit(**changes: Any) -> Any:
    """A DiTPipeline of 64 x 64 pixels, of whose thousand classes four have names."""
    import diffusers as untyped

    diffusers: Any = untyped
    transformer = diffusers.DiTTransformer2DModel(
        **{"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "out_channels": 8,
           **changes}
    )  # fmt: skip
    made: Any = diffusers.DiTPipeline(
        transformer=transformer, vae=autoencoder(), scheduler=diffusers.DDIMScheduler(clip_sample=False),
        id2label=LABELS,
    )
    randomise(made.transformer, seed=0)
    made.transformer.eval()  # in training it drops classes by itself
    randomise(made.vae, seed=1)
    made.set_progress_bar_config(disable=True)
    return made


def save_dit(peer: Any, folder: Path) -> None:
    """With the names of its classes, which diffusers reads from model_index.json and does not write."""
    peer.save_pretrained(folder)
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": LABELS}))


def pipeline(family: str, folder: Path) -> Any:
    """A diffusers pipeline of ``sd1``, ``sd2`` (v-prediction), ``sdxl`` or ``sdxl-refiner`` with random weights."""
    import diffusers as untyped
    from transformers import CLIPTokenizer

    diffusers: Any = untyped
    vocabulary = len(json.loads((tokenizer_files(folder / "words") / "vocab.json").read_text()))
    tokenizer = CLIPTokenizer.from_pretrained(folder / "words")
    scheduler = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    if family in ("sd1", "sd2"):
        v = family == "sd2"
        parts: dict[str, Any] = {
            "unet": unet(
                use_linear_projection=v, attention_head_dim=(2, 4) if v else 4, cross_attention_dim=1024 if v else 768
            ),
            "vae": autoencoder(),
            "text_encoder": text_encoder(vocabulary, 1024 if v else 768, hidden_act="gelu" if v else "quick_gelu"),
            "tokenizer": tokenizer, "safety_checker": None, "feature_extractor": None,
            "scheduler": (diffusers.DDIMScheduler if v else diffusers.PNDMScheduler)(
                **scheduler, set_alpha_to_one=False, prediction_type="v_prediction" if v else "epsilon",
                **({"clip_sample": False} if v else {"skip_prk_steps": True}),
            ),
        }
        made: Any = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    else:
        refiner = family == "sdxl-refiner"
        big = text_encoder(vocabulary, 1280, projection=True, hidden_act="gelu")
        small = None if refiner else text_encoder(vocabulary, 768)
        parts = {
            "unet": unet(
                use_linear_projection=True, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2),
                cross_attention_dim=1280 if refiner else 2048, addition_embed_type="text_time",
                addition_time_embed_dim=8, projection_class_embeddings_input_dim=1280 + 8 * (5 if refiner else 6),
            ),
            "vae": autoencoder(0.13025, force_upcast=True),
            "text_encoder": small, "text_encoder_2": big,
            "tokenizer": None if refiner else tokenizer, "tokenizer_2": tokenizer,
            "scheduler": diffusers.EulerDiscreteScheduler(**scheduler, timestep_spacing="leading"),
        }
        cls = diffusers.StableDiffusionXLImg2ImgPipeline if refiner else diffusers.StableDiffusionXLPipeline
        extra = {"requires_aesthetics_score": True} if refiner else {}
        made = cls(**parts, force_zeros_for_empty_prompt=not refiner, **extra)
    for i, name in enumerate(("unet", "vae", "text_encoder", "text_encoder_2")):
        if getattr(made, name, None) is not None:
            randomise(getattr(made, name), seed=i)
    made.set_progress_bar_config(disable=True)
    return made
