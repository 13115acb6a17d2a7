"""Folders written by diffusers and transformers are read, and what is written they read back."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.checkpoints.diffusers import Folder, read_folder, read_part, write_folder, write_part
from sfumato.checkpoints.parts import KINDS, read_config, resolve, write_config
from sfumato.core.errors import CheckpointError
from tests.conftest import shared

CLIP: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 60,
    "projection_dim": 12,
    "bos_token_id": 58,
    "eos_token_id": 59,
}
VAE: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "layers_per_block": 1,
}


def clip(projection: bool = False) -> Any:
    torch.manual_seed(0)
    kind: Any = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(transformers.CLIPTextConfig(**CLIP)).eval()


def vae() -> Any:
    torch.manual_seed(1)
    kind: Any = diffusers.AutoencoderKL
    return kind(**VAE).eval()


def saved(module: Any, path: Path, **options: Any) -> Path:
    module.save_pretrained(path, **options)
    return path


def values(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the text tower's own name, which comes and goes."""
    return {name.removeprefix("text_model."): value for name, value in state.items()}


def assert_equal(ours: nn.Module, theirs: nn.Module) -> None:
    a, b = values(ours.state_dict()), values(theirs.state_dict())
    b = {n: v for n, v in b.items() if "position_ids" not in n}
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("projection", [False, True])
@pytest.mark.parametrize("bare", [False, True])
def test_text_encoders_of_both_spellings(tmp_path: Path, projection: bool, bare: bool) -> None:
    peer = clip(projection)
    saved(peer, tmp_path)
    weights = {f"{n}": v for n, v in values(load_file(tmp_path / "model.safetensors")).items()}
    weights = {n if bare or n.startswith("text_projection") else f"text_model.{n}": v for n, v in weights.items()}
    weights["embeddings.position_ids" if bare else "text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    part = read_part(tmp_path)
    assert len(part.left_behind) == 1
    assert part.config.with_projection is projection
    assert_equal(part.load(), peer)


def test_the_autoencoder_with_its_older_attention_names(tmp_path: Path) -> None:
    peer = vae()
    saved(peer, tmp_path)
    assert_equal(read_part(tmp_path).load(), peer)
    old = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    renames = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new_name, old_name in renames.items():
        old = {n.replace(f".{new_name}.", f".{old_name}."): v for n, v in old.items()}
    assert any(".proj_attn." in n for n in old)
    save_file(old, tmp_path / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    assert_equal(read_part(tmp_path).load(), peer)


@pytest.mark.parametrize("options", [{"max_shard_size": "20KB"}, {"variant": "fp16"}, {"safe_serialization": False}])
def test_shards_variants_and_pickles_of_the_peer(tmp_path: Path, options: dict[str, Any]) -> None:
    peer = vae()
    saved(peer, tmp_path, **options)
    assert_equal(read_part(tmp_path, variant=options.get("variant")).load(), peer)


def test_shards_of_a_variant_of_the_peer(tmp_path: Path) -> None:
    saved(vae(), tmp_path, variant="fp16", max_shard_size="20KB")
    assert_equal(read_part(tmp_path, variant="fp16").load(), vae())
    with pytest.raises(CheckpointError, match="say which variant: fp16"):
        read_part(tmp_path)


def test_a_variant_that_is_not_there(tmp_path: Path) -> None:
    saved(vae(), tmp_path)
    with pytest.raises(CheckpointError, match="leave the variant out"):
        read_part(tmp_path, variant="fp16")
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="were looked for"):
        read_part(tmp_path)


@pytest.mark.parametrize(
    "options", [{}, {"max_bytes": 20_000}, {"variant": "fp16", "max_bytes": 20_000}, {"variant": "fp16"}]
)
def test_the_peers_read_what_is_written(tmp_path: Path, options: dict[str, Any]) -> None:
    for peer in (vae(), clip(), clip(True)):
        kind = type(peer)
        source, target = tmp_path / f"{kind.__name__}-a", tmp_path / f"{kind.__name__}-b"
        target.mkdir()
        write_part(target, read_part(saved(peer, source)), **options)
        back, report = kind.from_pretrained(target, variant=options.get("variant"), output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert_equal(back, peer)
        assert_equal(read_part(target, variant=options.get("variant")).load(), peer)


UNET: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "sample_size": 8,
}
VISION: dict[str, Any] = {"image_size": 8, "patch_size": 4, **{k: v for k, v in CLIP.items() if "_id" not in k[-3:]}}


def others() -> list[Any]:
    """One of every other class, small."""
    torch.manual_seed(2)
    vision: Any = transformers.CLIPVisionConfig(**{k: v for k, v in VISION.items() if k != "vocab_size"})
    made: Any = diffusers
    encoder: Any = transformers.CLIPVisionModelWithProjection
    return [
        made.UNet2DConditionModel(
            **UNET,
            cross_attention_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        made.UNet2DModel(
            **UNET, down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D")
        ),
        made.AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ),
        made.ControlNetModel(
            **{name: value for name, value in UNET.items() if name != "sample_size"}, cross_attention_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), conditioning_embedding_out_channels=(4, 8),
        ),
        made.VQModel(**VAE, num_vq_embeddings=7),
        made.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=4, num_layers=2, sample_size=8, num_embeds_ada_norm=3
        ),
        encoder(vision).eval(),
    ]


def test_every_class_there_and_back(tmp_path: Path) -> None:
    peers = others()
    older = {"Transformer2DModel"}  # DiT under its former name: its config has a test of its own
    assert {type(p).__name__ for p in (*peers, vae(), clip(), clip(True))} == set(KINDS) - older
    for peer in peers:
        source, target = tmp_path / f"{type(peer).__name__}-a", tmp_path / f"{type(peer).__name__}-b"
        target.mkdir()
        part = read_part(saved(peer, source))
        assert_equal(part.load(), peer)
        write_part(target, part)
        back, report = type(peer).from_pretrained(target, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert_equal(back, peer)


def test_the_peers_pipeline_opens_what_is_written(tmp_path: Path) -> None:
    unet = saved(others()[0], tmp_path / "unet")
    folder = read_folder(whole(tmp_path / "a"))
    tokenizer = shared("reference/checkpoint_folders/sd14/tokenizer")
    parts = {**folder.parts, "unet": read_part(unet)}
    scheduler = {"_class_name": "DDIMScheduler", "beta_start": 0.1}
    full = Folder("StableDiffusionPipeline", parts, {"scheduler": scheduler}, {"tokenizer": tokenizer})
    write_folder(tmp_path / "b", full, dtype=torch.float16, variant="fp16", max_bytes=40_000)
    loading: Any = diffusers.StableDiffusionPipeline
    pipeline = loading.from_pretrained(tmp_path / "b", variant="fp16", torch_dtype=torch.float16)
    assert pipeline.scheduler.config.beta_start == 0.1
    assert pipeline.tokenizer("a cat").input_ids[0] == 49406
    for name, part in parts.items():
        assert_equal(part.load(torch.float16), getattr(pipeline, name))


def whole(path: Path) -> Path:
    """A folder with an autoencoder, a text encoder, a scheduler, a tokenizer and a safety checker."""
    saved(vae(), path / "vae")
    saved(clip(), path / "text_encoder")
    for name, content in (
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler", "beta_start": 0.1}),
        ("tokenizer/vocab.json", {"a": 0}),
        (
            "model_index.json",
            {
                "_class_name": "StableDiffusionPipeline",
                "_diffusers_version": "0.2.2",
                "vae": ["diffusers", "AutoencoderKL"],
                "text_encoder": ["transformers", "CLIPTextModel"],
                "tokenizer": ["transformers", "CLIPTokenizer"],
                "scheduler": ["diffusers", "DDIMScheduler"],
                "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
                "feature_extractor": [None, None],
                "force_zeros_for_empty_prompt": True,
            },
        ),
    ):
        (path / name).parent.mkdir(exist_ok=True, parents=True)
        (path / name).write_text(json.dumps(content))
    (path / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    return path


def test_a_whole_folder_there_and_back(tmp_path: Path) -> None:
    folder = read_folder(whole(tmp_path / "a"))
    assert folder.pipeline == "StableDiffusionPipeline"
    assert folder.parts.keys() == {"vae", "text_encoder"}
    assert folder.schedulers["scheduler"]["beta_start"] == 0.1
    assert folder.options == {"force_zeros_for_empty_prompt": True}
    assert folder.set_aside == ("safety_checker",)
    write_folder(tmp_path / "b", folder, dtype=torch.float16)
    back = read_folder(tmp_path / "b")
    assert {n: p.config for n, p in back.parts.items()} == {n: p.config for n, p in folder.parts.items()}
    assert back.schedulers == folder.schedulers
    assert (tmp_path / "b/tokenizer/merges.txt").read_text() == "#version: 0.2\n"
    for name, part in folder.parts.items():
        for key, tensor in part.tensors.items():
            assert torch.equal(back.parts[name].tensors[key].read(), tensor.read().half())
    index = json.loads((tmp_path / "b/model_index.json").read_text())
    assert index["safety_checker"] == [None, None]
    with pytest.raises(CheckpointError, match="exists already"):
        write_folder(tmp_path / "b", folder)


def damage_index(path: Path, **changes: Any) -> None:
    content = json.loads((path / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps({**content, **changes}))


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    path = whole(tmp_path / "a")
    damage_index(path, unet=["diffusers", "UNet2DConditionModel"])
    with pytest.raises(CheckpointError, match="lists unet"):
        read_folder(path)
    damage_index(path, unet=[None, None], vae=["diffusers", "AutoencoderKLTemporalDecoder"])
    with pytest.raises(CheckpointError, match="did you mean 'AutoencoderKL'"):
        read_folder(path)
    damage_index(path, vae=["diffusers", "AutoencoderKL"], **{"../x": ["a", "b"]})
    with pytest.raises(CheckpointError, match="outside the folder"):
        read_folder(path)
    (path / "model_index.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        read_folder(path)
    with pytest.raises(CheckpointError, match="no file"):
        read_folder(tmp_path)


def test_a_lora_among_the_parts_is_named(tmp_path: Path) -> None:
    path = whole(tmp_path / "a")
    lora = {"lora_unet_x.lora_down.weight": torch.zeros(1, 2), "lora_unet_x.lora_up.weight": torch.zeros(2, 1)}
    save_file(lora, path / "vae/diffusion_pytorch_model.safetensors")
    part = read_folder(path).parts["vae"]
    with pytest.raises(CheckpointError, match=r"does not fit Autoencoder: missing .* It seems to be a LoRA \(kohya"):
        part.load()


# --- configs ---------------------------------------------------------------------------------------------------------


def test_a_setting_that_would_change_the_network_is_refused() -> None:
    settings = {"hidden_size": 8, "num_attention_heads": 2, "_name_or_path": "x", "torch_dtype": "float16"}
    assert read_config("CLIPTextModel", settings, "x").hidden_size == 8
    assert read_config("CLIPTextModel", {**settings, "attention_dropout": 0.0}, "x").hidden_size == 8
    with pytest.raises(CheckpointError, match=r"attention_dropout = 0\.5 is not built here"):
        read_config("CLIPTextModel", {**settings, "attention_dropout": 0.5}, "x")
    with pytest.raises(CheckpointError, match=r"hidden_sise = 8 is unknown.*did you mean 'hidden_size'"):
        read_config("CLIPTextModel", {"hidden_sise": 8}, "x")
    with pytest.raises(CheckpointError, match=r"config\.json.hidden_size: expected int"):
        read_config("CLIPTextModel", {"hidden_size": "8"}, "config.json")
    assert read_config("AutoencoderKL", {"force_upcast": None}, "x").force_upcast is False


@pytest.mark.parametrize("kind", KINDS)
def test_configs_there_and_back(kind: str) -> None:
    config = resolve(KINDS[kind].config)(**KINDS[kind].fixed)
    written = json.loads(json.dumps(write_config(kind, config, torch.float16)))
    assert read_config(kind, written, "x") == config


@pytest.mark.parametrize("model", ["sd14", "sd21", "sdxl"])
def test_genuine_configs(model: str) -> None:
    folder = shared(f"reference/checkpoint_folders/{model}")
    index = json.loads((folder / "model_index.json").read_text())
    names = [n for n, v in index.items() if isinstance(v, list) and v[1] in KINDS]
    assert len(names) >= 3
    for name in names:
        settings = json.loads((folder / name / "config.json").read_text())
        config = read_config(index[name][1], settings, name)
        again = read_config(index[name][1], json.loads(json.dumps(write_config(index[name][1], config, None))), name)
        assert again == config


def test_an_empty_model_folder_of_the_library(tmp_path: Path) -> None:
    shutil.copytree(whole(tmp_path / "a") / "vae", tmp_path / "vae")
    (tmp_path / "vae/config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="does not say of which class"):
        read_part(tmp_path / "vae")


def test_folders_are_values() -> None:
    assert Folder("X", {}).schedulers == {}
