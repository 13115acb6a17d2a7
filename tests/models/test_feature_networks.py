"""Inception and DINOv2."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sfumato.models.inception import BLOCKS, Block, Convolution, Inception
from sfumato.training.evaluate.features import open_dino


@pytest.mark.parametrize("size", [28, 42])
def test_dino_equals_transformers(size: int, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28}
    theirs = transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    theirs.save_pretrained(tmp_path)
    ours = open_dino(tmp_path, torch.device("cpu"))
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = theirs(x).pooler_output
        assert (ours(x) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_inception_is_the_published_network() -> None:
    net = Inception().eval()
    # As in the file: 23.85 M parameters, of which its layer of classes, which is not read here, has 2,065,392.
    assert sum(p.numel() for p in net.parameters()) == 21_785_568
    widths = [getattr(net, name).channels for name in BLOCKS]
    assert widths == [256, 288, 288, 768, 768, 768, 768, 768, 1280, 2048, 2048]
    x = torch.rand(1, 3, 40, 60) * 2 - 1
    whole = F.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
    with torch.no_grad():
        assert net(x).shape == (1, 2048)
        assert torch.equal(net(x), net(whole))


def test_pools_of_inception() -> None:
    """Averages leave the padding out of the count; the last block takes maxima."""
    for name, width in (("Mixed_5b", 192), ("Mixed_7b", 1280), ("Mixed_7c", 2048)):
        block = Block(width, BLOCKS[name]).eval()
        last = block.get_submodule("branch_pool")
        assert isinstance(last, Convolution)
        x = torch.randn(1, width, 5, 5)
        pooled = F.max_pool2d(x, 3, 1, 1) if name == "Mixed_7c" else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        with torch.no_grad():
            assert torch.equal(block(x)[:, -last.conv.out_channels :], last(pooled))
