"""``sfumato plan``."""

import json
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sfumato.cli.loading import Loading
from sfumato.core.request import Request
from sfumato.core.sizes import parse_bytes, show_bytes

if TYPE_CHECKING:
    from sfumato.tasks.forecast import Forecast


@dataclass(frozen=True)
class Plan:
    """How long a picture would take, and how much memory, counted from the model's configs; no weights are read."""

    request: Request
    loading: Loading
    measure: Annotated[bool, "measure this machine again"] = False
    json: Annotated[bool, "print JSON"] = False

    positional: ClassVar = ("prompt",)
    spellings: ClassVar = {
        "model": ("-m",), "count": ("--batch-count",), "loras": ("--lora",), "spacing": ("--schedule",),
    }  # fmt: skip

    def run(self) -> int:
        pipeline = replace(self.loading, max_memory=self.loading.max_memory or "1TB").open()  # weights stay in files
        forecaster = pipeline.forecaster(self.request, self.measure)
        notes = [*pipeline.model.notes]
        if self.loading.max_memory is None:
            found, said = forecaster.unasked()
            notes += said
        else:
            found = forecaster.fit(parse_bytes(self.loading.max_memory))
        settled = forecaster.settled.request
        notes += found.notes()
        if self.json:
            print(json.dumps(report(found, settled, notes), indent=2))
            return 0
        print(f"{settled.count} of {settled.width} x {settled.height}, {settled.steps} steps of {settled.sampler}")
        print(table(found))
        for note in notes:
            print(f"note: {note}")
        return 0


def report(found: "Forecast", request: Request, notes: list[str]) -> dict[str, Any]:
    """The forecast as JSON: bytes, seconds, floating-point operations."""
    growth = found.holding.growth
    return {
        "width": request.width, "height": request.height, "steps": request.steps, "count": request.count,
        "phases": [asdict(phase) for phase in found.phases], "seconds": found.seconds, "peak": found.peak,
        "holding": {**asdict(found.holding), "growth": "all" if growth == inf else growth}, "notes": notes,
    }  # fmt: skip


def table(found: "Forecast") -> str:
    """The forecast as people read it."""
    lines = [f"{'':<14} {'calls':>6} {'GFLOP':>10} {'seconds':>9} {'memory':>9}"]
    for p in found.phases:
        lines.append(f"{p.name:<14} {p.calls:>6} {p.flops / 1e9:>10,.1f} {p.seconds:>9,.1f} {show_bytes(p.peak):>9}")
    total = sum(phase.flops for phase in found.phases) / 1e9
    lines.append(f"{'all':<14} {'':>6} {total:>10,.1f} {found.seconds:>9,.1f} {show_bytes(found.peak):>9}")
    return "\n".join(lines)
