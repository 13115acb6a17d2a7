"""Makes a text-to-picture model from nothing in a few minutes: an autoencoder, then a denoiser with its text encoder.

Its world is one coloured shape on white, at 32 x 32 pixels. The result is a model folder like any other:

    python examples/demo_model.py out/demo-model
    sfumato "a large red star" --model out/demo-model
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sfumato.checkpoints.diffusers import Folder, write_folder
from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.parts import Part
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.models.clip_text import ClipText, ClipTextConfig
from sfumato.models.unet import UNet, UNetConfig
from sfumato.nn.conditioning import Conditioning
from sfumato.noise.prediction import PREDICTIONS
from sfumato.noise.schedule import discrete
from sfumato.text.tokenizer import train
from sfumato.training.shapes import COLOURS, SHAPES, SIZES, Group, Scene, draw

SIDE, PICTURES = 32, 1800
SCENES = [Scene((Group(1, size, colour, shape),)) for size in SIZES for colour in COLOURS for shape in SHAPES]

AUTOENCODER = AutoencoderConfig(
    block_out_channels=(16, 32, 32), layers_per_block=1, norm_num_groups=8, sample_size=SIDE,
    mid_block_add_attention=False,
)  # fmt: skip
DENOISER = UNetConfig(
    sample_size=SIDE // 4, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=4,
    cross_attention_dim=64, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=8,
)  # fmt: skip


def main(folder: Path) -> None:
    torch.manual_seed(0)
    begin = time.perf_counter()
    pictures = np.stack([np.asarray(draw(SCENES[i % len(SCENES)], 0, i, SIDE)) for i in range(PICTURES)])
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1  # [PICTURES, 3, 32, 32]

    autoencoder = Autoencoder(AUTOENCODER)

    def reconstruct(rows: Tensor) -> Tensor:
        shown = x[rows]
        weight = 1 + 9 * (shown.amin(1, keepdim=True) < 0.9)  # most of a picture is white, and soon right
        return ((autoencoder.decode(autoencoder.encode(shown).mean) - shown).square() * weight).mean()

    fit("autoencoder", autoencoder, reconstruct, steps=400, batch=16, rate=5e-4)
    with torch.no_grad():
        z = torch.cat([autoencoder.encode(part).mean for part in torch.split(x, 200)])  # [PICTURES, 4, 8, 8]
    scale = 1.0 / float(z.std())
    z = z * scale

    tokenizer = train(map(str, SCENES), 560)
    captions = ["", *map(str, SCENES)]
    ids = torch.tensor([tokenizer.frame(tokenizer.encode(caption)) for caption in captions])  # [1 + scenes, 77]
    text = ClipText(ClipTextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        bos_token_id=tokenizer.start, eos_token_id=tokenizer.end, pad_token_id=tokenizer.pad,
    ))  # fmt: skip
    denoiser = UNet(DENOISER)
    schedule, prediction = discrete(), PREDICTIONS["epsilon"]

    def denoise(rows: Tensor) -> Tensor:
        shown = (rows % len(SCENES) + 1) * (torch.rand(len(rows)) > 0.1)  # one in ten is told nothing, for guidance
        t, noise = torch.randint(schedule.steps, (len(rows),)), torch.randn(len(rows), *z.shape[1:])
        alpha, sigma = (v.float()[:, None, None, None] for v in schedule.marginal(t))
        states = text(ids).last[shown]
        said = denoiser(alpha * z[rows] + sigma * noise, t, Conditioning(context=states))
        return mse_loss(said, prediction.target(z[rows], noise, alpha, sigma))

    fit("denoiser", nn.ModuleList([denoiser, text]), denoise, steps=600, batch=32, rate=1e-3)

    config = replace(AUTOENCODER, scaling_factor=scale)
    parts = {
        name: Part(kind, config, lazy_all(module.state_dict()), name)
        for name, kind, config, module in (
            ("unet", "UNet2DConditionModel", DENOISER, denoiser), ("vae", "AutoencoderKL", config, autoencoder),
            ("text_encoder", "CLIPTextModel", text.config, text),
        )
    }  # fmt: skip
    scheduler = {
        "_class_name": "DPMSolverMultistepScheduler", "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
    }  # fmt: skip
    with TemporaryDirectory() as place:
        tokenizer.save(Path(place))
        made = Folder("StableDiffusionPipeline", parts, {"scheduler": scheduler}, {"tokenizer": Path(place)})
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_folder(folder, made, overwrite=True)
    print(f"made {folder} in {time.perf_counter() - begin:.0f} s")


def fit(name: str, module: nn.Module, loss_of: Callable[[Tensor], Tensor], steps: int, batch: int, rate: float) -> None:
    """AdamW on random rows, the rate rising for a tenth of the steps and then falling to nothing."""
    optimiser = torch.optim.AdamW(module.parameters(), rate, weight_decay=1e-4)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps + 1, pct_start=0.1)
    for step in range(1, steps + 1):
        loss = loss_of(torch.randint(PICTURES, (batch,)))
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        rates.step()
        if step % 100 == 0:
            print(f"{name}: step {step} of {steps}, loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
