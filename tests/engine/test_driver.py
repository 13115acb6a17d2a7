"""The driver and the denoiser, with a network of twenty lines."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sfumato.core.errors import NumericError
from sfumato.engine.denoiser import Denoiser
from sfumato.engine.driver import Cancelled, Driver, Job, Progress, run
from sfumato.engine.streams import Streams
from sfumato.nn.conditioning import Conditioning
from sfumato.noise.schedule import discrete
from sfumato.sampling.plan import Plan
from sfumato.sampling.types import Estimate, Query, Sigmas

SIGMAS = [14.0, 7.0, 3.0, 1.0, 0.3, 0.0]
STEPS = len(SIGMAS) - 1
CPU = torch.device("cpu")
FRAME = Plan(discrete(), "epsilon", "euler")


@dataclass
class Toy:
    """A network whose answer depends on picture, time and context, row by row; it counts what it is asked."""

    calls: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        rows = len(conditioning) or len(x)
        self.calls.append((len(x), rows))
        k = rows // len(x)
        x, t = x.repeat(k, 1, 1, 1), t.repeat(k)
        told = 0.0 if conditioning.context is None else conditioning.context.mean((1, 2))[:, None, None, None]
        return torch.tanh(x + told) * (1 + t[:, None, None, None] / 1000)


@dataclass(frozen=True)
class Scaled:
    """Classifier-free guidance, as small as it can be."""

    scale: float

    def wants(self, sigma: float) -> tuple[str, ...]:
        return ("positive",) if self.scale == 1 else ("positive", "negative")

    def combine(self, outputs: Mapping[str, Tensor], sigma: float) -> Tensor:
        if self.scale == 1:
            return outputs["positive"]
        return outputs["negative"] + self.scale * (outputs["positive"] - outputs["negative"])

    def constrain(self, x0: Tensor, sigma: float) -> Tensor:
        return x0


def euler(x: Tensor, sigmas: Sigmas) -> Generator[Query, Estimate, Tensor]:
    for sigma, sigma_next in pairwise(sigmas):
        x0 = (yield Query(x, sigma)).x0
        x = torch.lerp(x0, x, sigma_next / sigma)
    return x


def denoiser(network: Toy, rows: int = 64) -> Denoiser:
    return Denoiser(network, rows=rows)


def job(engine: Denoiser, seed: int, count: int = 1, scale: float = 3.0, size: int = 4, length: int = 5) -> Job:
    streams = Streams(range(seed, seed + count), (2, size, size), CPU, "philox")
    told = torch.linspace(-1, 1, length * 3).reshape(1, length, 3) + seed / 100
    conditionings = {
        "positive": Conditioning(context=told.expand(count, -1, -1)),
        "negative": Conditioning(context=-told.expand(count, -1, -1)),
    }
    return Job(euler(streams() * SIGMAS[0], SIGMAS), SIGMAS, engine, FRAME, Scaled(scale), conditionings)


def alone(seed: int, count: int = 1, scale: float = 3.0) -> Tensor:
    [result] = run([job(denoiser(Toy()), seed, count, scale)])
    return result


def same(a: Tensor | None, b: Tensor) -> None:
    assert a is not None
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_jobs_share_one_forward_and_each_gets_its_solo_result() -> None:
    network = Toy()
    engine = denoiser(network)
    results = run([job(engine, seed=1), job(engine, seed=2, count=2), job(engine, seed=9)])
    assert network.calls == [(4, 8)] * STEPS
    for result, (seed, count) in zip(results, [(1, 1), (2, 2), (9, 1)], strict=True):
        same(result, alone(seed, count))


def test_unguided_jobs_compute_no_negative_branch() -> None:
    network = Toy()
    run([job(denoiser(network), seed=1, scale=1.0)])
    assert network.calls == [(1, 1)] * STEPS


def test_guided_and_unguided_jobs_share_a_forward() -> None:
    network = Toy()
    engine = denoiser(network)
    results = run([job(engine, seed=1), job(engine, seed=2, scale=1.0)])
    assert network.calls == [(3, 3)] * STEPS
    same(results[0], alone(seed=1))
    same(results[1], alone(seed=2, scale=1.0))


@pytest.mark.parametrize(("size", "length"), [(6, 5), (4, 7)])
def test_what_does_not_fit_is_asked_apart(size: int, length: int) -> None:
    network = Toy()
    engine = denoiser(network)
    run([job(engine, seed=1), job(engine, seed=2, size=size, length=length)])
    assert network.calls == [(1, 2)] * 2 * STEPS


def test_rows_of_a_forward_are_limited() -> None:
    network = Toy()
    engine = denoiser(network, rows=4)
    run([job(engine, seed=s) for s in range(5)])
    assert network.calls == [(2, 4), (2, 4), (1, 2)] * STEPS


def test_a_batch_draws_the_noise_of_its_seeds() -> None:
    batch = Streams(range(5, 9), (2, 4, 4), CPU, "philox")
    solo = [Streams([seed], (2, 4, 4), CPU, "philox") for seed in range(5, 9)]
    for _ in range(3):
        torch.testing.assert_close(batch(), torch.cat([stream() for stream in solo]), rtol=0, atol=0)
    draws = Streams([5, 6], (2, 4, 4), CPU, "philox")
    assert len({tuple(row.flatten().tolist()) for _ in range(2) for row in draws()}) == 4


def test_torch_streams_give_what_a_generator_gives() -> None:
    streams = Streams([7, 8], (2, 4, 4), CPU, "torch")
    generator = torch.Generator().manual_seed(8)
    for _ in range(3):
        torch.testing.assert_close(streams()[1:], torch.randn((1, 2, 4, 4), generator=generator), rtol=0, atol=0)


def test_a_job_may_join_late_and_another_leave() -> None:
    network = Toy()
    engine = denoiser(network)
    driver, first, late = Driver(), job(engine, seed=1), job(engine, seed=2)
    driver.submit(first)
    driver.tick()
    driver.tick()
    driver.submit(late)
    while driver.jobs:
        driver.tick()
    same(first.result, alone(seed=1))
    same(late.result, alone(seed=2))
    assert [x for x, _ in network.calls] == [1, 1, 2, 2, 2, 1, 1]


def test_progress_counts_steps_and_can_cancel() -> None:
    seen: list[int] = []

    def watch(progress: Progress) -> None:
        assert progress.steps == STEPS
        seen.append(progress.step)
        if progress.step == 3:
            raise Cancelled("enough")

    watched = job(denoiser(Toy()), seed=1)
    watched.on_step = watch
    with pytest.raises(Cancelled):
        run([watched])
    assert seen == [1, 2, 3]
    assert watched.result is None


def test_a_failing_job_leaves_the_others_alone() -> None:
    engine = denoiser(Toy())
    good, bad = job(engine, seed=1), job(engine, seed=2)
    bad.conditionings = {name: c.map(lambda t: t * float("nan")) for name, c in bad.conditionings.items()}
    driver = Driver()
    driver.submit(good)
    driver.submit(bad)
    while driver.jobs:
        driver.tick()
    assert isinstance(bad.error, NumericError)
    assert "NaN" in str(bad.error)
    same(good.result, alone(seed=1))


def test_channels_beside_the_picture_reach_the_network() -> None:
    widths: list[int] = []

    def network(x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        widths.append(x.shape[1])
        return x[:, :2].repeat(len(conditioning) // len(x), 1, 1, 1)

    engine = Denoiser(network)
    told, mask = torch.zeros(1, 5, 3), torch.ones(1, 1, 4, 4)
    conditionings = {name: Conditioning(context=told, concat=mask) for name in ("positive", "negative")}
    x = Streams([0], (2, 4, 4), CPU, "philox")() * SIGMAS[0]
    run([Job(euler(x, SIGMAS), SIGMAS, engine, FRAME, Scaled(2.0), conditionings)])
    assert widths == [3] * STEPS


@pytest.mark.parametrize("depends", [False, True], ids=["sd", "xl"])
@pytest.mark.parametrize("scales", [(3.0, 3.0), (3.0, 1.0)])
def test_times_computed_beforehand_change_nothing(depends: bool, scales: tuple[float, float]) -> None:
    from dataclasses import replace

    from sfumato.engine.timetable import Timetable
    from sfumato.models.unet import UNet, UNetConfig

    config = UNetConfig(
        block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=4,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=3, attention_head_dim=2, in_channels=2,
        out_channels=2, layers_per_block=1,
    )
    if depends:
        config = replace(
            config, addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=11
        )
    torch.manual_seed(0)
    unet = UNet(config).eval()
    results = []
    for ready in (False, True):
        engine, jobs = Denoiser(unet), []
        for seed, scale in enumerate(scales):
            rows = {
                name: Conditioning(
                    context=torch.full((1, 5, 3), sign), pooled=torch.full((1, 3), sign), sizes=torch.ones(1, 2)
                )
                for name, sign in (("positive", 1.0), ("negative", -1.0))
            }
            x = Streams([seed, seed + 9], (2, 8, 8), CPU, "philox")() * SIGMAS[0]
            with torch.inference_mode():
                table = Timetable(unet, FRAME, SIGMAS, rows) if ready else None
            both = {name: row.map(lambda t: t.expand(2, *t.shape[1:])) for name, row in rows.items()}
            jobs.append(Job(euler(x, SIGMAS), SIGMAS, engine, FRAME, Scaled(scale), both, timetable=table))
            assert table is None or table.same is not depends
        results.append(run(jobs))
    for plain, timed in zip(*results, strict=True):
        torch.testing.assert_close(plain, timed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("classes", [None, 3], ids=["told nothing", "one class for both"])
def test_conditionings_that_make_no_difference_leave_the_picture_alone(classes: int | None) -> None:
    from sfumato.engine.timetable import Timetable
    from sfumato.models.unet_unconditional import UnconditionalUNet, UnconditionalUNetConfig

    torch.manual_seed(0)
    unet = UnconditionalUNet(UnconditionalUNetConfig(
        in_channels=2, out_channels=2, block_out_channels=(8, 16), down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"), norm_num_groups=4, layers_per_block=1, num_class_embeds=classes,
    )).eval()  # fmt: skip
    told = Conditioning() if classes is None else Conditioning(labels=torch.tensor([1]))
    rows = {"positive": told, "negative": told}
    results = []
    for scale, ready in ((3.0, True), (3.0, False), (1.0, False)):
        x = Streams([7, 8], (2, 8, 8), CPU, "philox")() * SIGMAS[0]
        with torch.inference_mode():
            table = Timetable(unet, FRAME, SIGMAS, rows) if ready else None
        both = {name: row.map(lambda t: t.expand(2)) for name, row in rows.items()}
        results += run([Job(euler(x, SIGMAS), SIGMAS, Denoiser(unet), FRAME, Scaled(scale), both, timetable=table)])
    for guided in results[:2]:
        torch.testing.assert_close(guided, results[2], rtol=1e-4, atol=1e-4)
