"""What a request takes: counted, chosen to fit, and true."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sfumato
from benchmarks.memory import bring
from sfumato.cli import main
from sfumato.core.errors import CapacityError
from sfumato.core.request import Request
from sfumato.core.shipped import FOLDERS, SHIPPED
from sfumato.engine.pack import FAST, Eight
from sfumato.engine.rates import Rates
from sfumato.engine.ready import make_ready, packable, what_is_packed
from sfumato.engine.residence import USUAL, Holding, asleep
from sfumato.engine.trace import size
from sfumato.families.load import open_model
from sfumato.families.types import Model
from sfumato.nn import native
from sfumato.tasks import forecast
from sfumato.tasks import pipeline as pipelines
from sfumato.tasks.forecast import Forecaster
from tests.conftest import ROOT
from tests.parity import tiny

RATES = Rates(
    convolution=1e9, product=2e9, attention=1e9, movement=1e9, packed=4e9, winograd=3e9, int8=8e9, latency=1e-6,
    load=1e9, process=0,
)  # fmt: skip
needs_native = pytest.mark.skipif(not native.available(), reason=native.why())
REQUEST = Request("a red apple", width=256, height=256, steps=4, count=4, sampler="euler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sd1")
    tiny.pipeline("sd1", place).save_pretrained(place / "model")
    return place / "model"


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return open_model(folder, device="cpu", asleep=True)


@pytest.fixture(scope="module")
def forecaster(model: Model) -> Forecaster:
    return Forecaster(model, REQUEST, RATES)


def test_nothing_is_read_and_nothing_is_woken(model: Model, forecaster: Forecaster) -> None:
    forecaster.forecast(USUAL)
    assert all(asleep(part) for part in model.parts.values())


def test_phases(forecaster: Forecaster) -> None:
    text, steps, decoding = forecaster.forecast(USUAL).phases
    assert [phase.calls for phase in (text, steps, decoding)] == [1, 4, 4]
    found = forecaster.forecast(USUAL)
    assert found.seconds == pytest.approx(text.seconds + steps.seconds + decoding.seconds)
    assert found.peak == max(text.peak, steps.peak, decoding.peak)
    assert not found.notes()


def test_steps_count_what_the_sampler_asks(model: Model) -> None:
    for sampler, calls in {"euler": 4, "heun": 7, "dpm2": 7, "ddim": 4}.items():
        found = Forecaster(model, replace(REQUEST, sampler=sampler), RATES).forecast(USUAL)
        assert found.phases[1].calls == calls, sampler


def test_time_grows_with_work(model: Model, forecaster: Forecaster) -> None:
    usual = forecaster.forecast(USUAL).phases
    larger = Forecaster(model, replace(REQUEST, width=512), RATES).forecast(USUAL).phases
    fewer = Forecaster(model, replace(REQUEST, count=2), RATES).forecast(USUAL).phases
    unguided = Forecaster(model, replace(REQUEST, cfg_scale=1.0), RATES).forecast(USUAL).phases
    assert larger[2].flops > 2 * usual[2].flops  # attention grows with the square
    assert usual[1].flops == pytest.approx(2 * fewer[1].flops, rel=0.01)
    assert usual[1].flops > 1.5 * unguided[1].flops
    assert usual[0].flops == 2 * unguided[0].flops


def test_rows_in_turn_do_the_same_work_in_less_memory(forecaster: Forecaster) -> None:
    together, apart = (forecaster.forecast(Holding(rows=rows)).phases[1] for rows in (16, 2))
    assert apart.calls == 4 * together.calls
    assert apart.flops == pytest.approx(together.flops, rel=0.01)
    assert apart.peak < together.peak


def test_each_way_of_holding_takes_less_than_the_one_before(forecaster: Forecaster) -> None:
    ways = [Holding("resident"), Holding("parts"), Holding("layers"), Holding("layers", 2, 16)]
    peaks = [forecaster.forecast(way).peak for way in ways]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks)
    assert forecaster.forecast(Holding("layers")).seconds > forecaster.forecast(Holding("parts")).seconds


def test_the_gentlest_way_that_fits_is_chosen(forecaster: Forecaster) -> None:
    usual, parts = (forecaster.forecast(Holding(where)).peak for where in ("resident", "parts"))
    assert forecaster.fit(usual).holding == USUAL
    assert forecaster.fit(parts).holding.where == "parts"
    assert forecaster.fit(parts).holding.tile is None
    chosen = []
    for limit in range(usual, 0, -3_000_000):
        try:
            found = forecaster.fit(limit)
        except CapacityError:
            break
        assert found.peak <= limit
        chosen.append(found.holding)
    assert {holding.where for holding in chosen} == {"resident", "parts", "layers"}
    assert chosen[-1].where == "layers"
    assert chosen[-1].rows < USUAL.rows
    exact = [holding.tile is None for holding in chosen]
    assert exact.index(False) > [holding.where for holding in chosen].index("parts")  # tiles change the picture


def test_the_least_that_is_named_is_enough(forecaster: Forecaster) -> None:
    with pytest.raises(CapacityError, match="at least") as caught:
        forecaster.fit(1)
    named = int(str(caught.value).split("at least ")[1].split(" MB")[0])
    assert forecaster.fit((named + 1) * 1_000_000).peak <= (named + 1) * 1_000_000


LOOK = """
import sys
import torch
from sfumato.core.request import Request
from sfumato.engine.rates import NOMINAL
from sfumato.engine.residence import USUAL
from sfumato.families.load import open_model
from sfumato.tasks.forecast import Forecaster

for folder in sys.argv[1:]:
    model = open_model(folder, device="cpu", asleep=True)
    Forecaster(model, Request("a cat", width=64, height=64), NOMINAL, packs=True).forecast(USUAL)
sys.exit(", ".join({"sympy", "torch._dynamo", "torch.fx.experimental.symbolic_shapes"} & set(sys.modules)) or 0)
"""


def test_looking_ahead_does_not_import_the_compiler(folder: Path, tmp_path: Path) -> None:
    """It would take seconds, and 100 MB that nobody reckoned with."""
    tiny.pipeline("sdxl", tmp_path).save_pretrained(tmp_path / "xl")
    command = [sys.executable, "-c", LOOK, str(folder), str(tmp_path / "xl"), str(FOLDERS[SHIPPED])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_half_precision_and_parts_that_stay(folder: Path) -> None:
    full, half = (open_model(folder, device="cpu", dtype=dtype, asleep=True) for dtype in ("float32", "bfloat16"))
    narrow, wide = (Forecaster(m, REQUEST, RATES).forecast(Holding("parts")).phases[0].peak for m in (half, full))
    assert narrow < wide
    before = Forecaster(full, REQUEST, RATES).forecast(Holding("layers")).phases[0].peak
    full.parts["unet"] = full.files.pop("unet").load()
    after = Forecaster(full, REQUEST, RATES).forecast(Holding("layers")).phases[0].peak
    weights = sum(p.nbytes for p in full.parts["unet"].parameters())
    assert after - before == weights


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipelines, "rates", lambda *_: RATES)


@pytest.mark.usefixtures("known")
def test_a_budget_changes_the_way_and_not_the_picture(folder: Path) -> None:
    request = Request("a cat", seed=2, steps=2, width=64, height=64)
    expected = sfumato.load(str(folder), device="cpu", optimize=False)(request)
    pipe = sfumato.load(str(folder), device="cpu", max_memory="50MB")
    found = pipe(request)
    assert (found.pictures[0].pixels == expected.pictures[0].pixels).all()
    assert any("each layer is in memory only while it computes" in note for note in found.notes)
    with pytest.raises(CapacityError, match="limit is 2 MB"):
        pipe(request, max_memory="2MB")
    assert not any("memory" in note for note in pipe(request, max_memory="1GB").notes)


@pytest.mark.usefixtures("known")
def test_a_limit_after_pictures_without_one(folder: Path) -> None:
    pipe = sfumato.load(str(folder), device="cpu")
    request = Request("a cat", seed=2, steps=2, width=64, height=64)
    first = pipe(request)
    assert bool(pipe.model.packed) == native.available()
    tight = pipe(request, max_memory="50MB")
    assert not pipe.model.packed
    assert any("each layer is in memory only while it computes" in note for note in tight.notes)
    assert not any("Native kernels" in note for note in tight.notes)
    wide = pipe(request, max_memory="1GB")
    again = pipe(request)
    assert bool(pipe.model.packed) == native.available()
    for found in (tight, wide, again):
        assert np.abs(found.pictures[0].pixels.astype(int) - first.pictures[0].pixels.astype(int)).max() <= 1
    assert [sum("kernels" in note for note in found.notes) for found in (first, wide, again)] == [1, 1, 1]
    assert not pipe.forecaster(request).forecast(USUAL).notes()  # of layers as they are now, packed


@needs_native
@pytest.mark.parametrize("eight", [None, "int8", "fp8"])
def test_packed_weights_are_known_before_they_are_packed(folder: Path, eight: Eight | None) -> None:
    model = open_model(folder, device="cpu", asleep=True)
    forecaster = Forecaster(model, REQUEST, RATES, packs=True, eight=eight)
    plain, packed = (forecaster.forecast(Holding(growth=growth)) for growth in (None, 0.5))
    [stage] = forecaster.stages(Holding(growth=0.5))
    told = dict(stage.packed)
    assert all(asleep(part) for part in model.parts.values())
    less = 1.1 if eight == "int8" else 0.9  # Winograd multiplies less
    assert packed.phases[1].flops < less * plain.phases[1].flops
    notes = make_ready(model, eight, 0.5, forecaster.shapes(Holding(growth=0.5)), "so much")
    assert set(told) == model.packed
    assert told == {name: size(what_is_packed(model, model.parts, name)) for name in packable(model)}
    assert notes[-1].endswith(("so much.", "all that helps.")) != (eight == "int8")
    now = Forecaster(model, REQUEST, RATES).forecast(USUAL)  # of the packed layers themselves
    assert [phase.peak for phase in now.phases] == [phase.peak for phase in packed.phases]
    assert now.seconds == pytest.approx(packed.seconds)


@needs_native
def test_growth_is_what_the_memory_allows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(folder, device="cpu", asleep=True)
    light = Forecaster(model, REQUEST, replace(RATES, process=400_000_000), packs=True)
    assert light.growth(1 << 40).most == FAST
    monkeypatch.setattr(forecast, "LARGEST", 1.2)
    heavy = Forecaster(model, REQUEST, RATES, packs=True)
    plain = heavy.forecast(USUAL).peak
    [stage] = heavy.stages(USUAL)
    little = plain + 4 * stage.packs(None) - 3 * size(stage.model.network)
    ample, scarce, none = heavy.growth(1 << 40), heavy.growth(little), heavy.growth(plain // 2)
    assert none.most is None
    assert scarce.most is not None
    assert ample.most is not None
    assert 0 <= scarce.most < ample.most
    assert scarce.shapes
    for growth in (scarce.most, ample.most):
        assert heavy.forecast(Holding(growth=growth)).peak <= 1.2 * plain
    monkeypatch.setattr(forecast, "free", lambda: 1_000)
    monkeypatch.setattr(forecast, "resident", lambda: plain // 2)
    assert heavy.growth().most is None
    assert "free memory" in heavy.growth().why
    assert heavy.fit(1 << 40).holding.growth == ample.most
    assert heavy.fit(little).peak <= little


@pytest.mark.usefixtures("known")
def test_plan_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["plan", "--model", str(folder), "--width", "128", "--height", "64", "--steps", "3", "--device", "cpu"]
    assert main(line) == 0
    text = capsys.readouterr().out
    assert "1 of 128 x 64, 3 steps" in text
    assert all(word in text for word in ("text encoding", "denoising", "decoding", "GFLOP", "MB", "float32 on cpu"))
    assert main([*line, "--json", "--max-memory", "55MB"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["peak"] <= 55e6
    assert told["holding"]["where"] != "resident"
    assert [phase["name"] for phase in told["phases"]] == ["text encoding", "denoising", "decoding"]
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["holding"]["growth"] == ("all" if native.available() else None)
    assert main([*line, "--max-memory", "5MB"]) == 2
    assert "needs at least" in capsys.readouterr().err
    assert main([*line, "--max-memory", "some"]) == 2
    capsys.readouterr()
    assert main([*line, "--quantize", "int8"]) == 0
    assert ("Native kernels" in capsys.readouterr().out) == native.available()


@pytest.mark.slow
@pytest.mark.parametrize("edits", [False, True])
@pytest.mark.parametrize("where", ["resident", "parts", "layers"])
def test_the_peak_is_within_15_percent_of_what_is_measured(
    folder: Path, where: str, edits: bool, tmp_path: Path
) -> None:
    """In a fresh process, on a picture small enough that the process itself is most of it; `make bench` has larger."""
    bring(tmp_path, 256)
    case = {"model": "tiny", "stored": "float32", "size": 256, "count": 4, "steps": 2, "edits": edits,
            "holding": {"where": where, "rows": 16, "tile": None}}  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.memory", "draw", str(folder), json.dumps(case), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert abs(found["predicted"] / found["peak"] - 1) < 0.15


def test_rates_are_what_the_pipeline_asks_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def told(*arguments: object) -> Rates:
        asked.append(arguments)
        return RATES

    monkeypatch.setattr(pipelines, "rates", told)
    pipe = sfumato.load(str(folder), device="cpu", optimize=False)
    pipe.forecaster(REQUEST, again=True)
    assert asked == [(pipe.model.device, pipe.model.dtype, pipelines.__name__, True)]
