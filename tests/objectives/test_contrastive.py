"""CLIP's objective."""

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sfumato.objectives.contrastive import contrastive


def vectors(count: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_it_is_the_symmetric_cross_entropy() -> None:
    texts, pictures, scale = vectors(5, 0), vectors(5, 1), torch.tensor(7.0)
    logits, own = 7.0 * pictures @ texts.T, torch.arange(5)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    assert torch.allclose(contrastive(texts, pictures, scale).total, expected)


def test_perfect_pairs_are_all_found() -> None:
    texts = vectors(5, 0)
    loss = contrastive(texts, texts, torch.tensor(100.0))
    assert loss.parts["accuracy"] == 1
    assert loss.total < 0.01


def test_equal_captions_are_right_answers_for_each_other() -> None:
    texts = vectors(4, 0)
    texts = torch.cat([texts, texts[:1]])  # the last says what the first says
    scale = torch.tensor(50.0)
    shared = contrastive(texts, texts, scale, torch.tensor([0, 1, 2, 3, 0]))
    assert shared.parts["accuracy"] == 1
    assert torch.allclose(shared.each[0], torch.tensor(2.0).log(), atol=1e-2)  # the best: half of it on each
    swapped = texts[[4, 1, 2, 3, 0]]
    assert torch.allclose(contrastive(texts, swapped, scale, torch.tensor([0, 1, 2, 3, 0])).total, shared.total)


def rank(number: int, meeting: str, result: str) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=number, world_size=2)
    texts, pictures = (vectors(6, seed)[3 * number : 3 * number + 3].requires_grad_() for seed in (0, 1))
    loss = contrastive(texts, pictures, torch.tensor(5.0))
    torch.autograd.backward(loss.total)
    assert texts.grad is not None
    torch.save((loss.total.detach(), texts.grad / 2), f"{result}.{number}")  # DDP divides by the processes
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_see_each_others_pairs(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    places = str(tmp_path / "meeting"), str(tmp_path / "result")
    ranks = [context.Process(target=rank, args=(number, *places)) for number in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    texts, pictures = vectors(6, 0).requires_grad_(), vectors(6, 1)
    loss = contrastive(texts, pictures, torch.tensor(5.0))
    torch.autograd.backward(loss.total)
    assert texts.grad is not None
    for number in range(2):
        total, gradient = torch.load(tmp_path / f"result.{number}", weights_only=True)
        assert torch.allclose(total, loss.total)
        assert torch.allclose(gradient, texts.grad[3 * number : 3 * number + 3], atol=1e-6)
