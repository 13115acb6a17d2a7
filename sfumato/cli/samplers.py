"""``sfumato samplers``."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated


@dataclass(frozen=True)
class Samplers:
    """The samplers and the spacings of sigmas, with every name they answer to; case, spaces, - and _ do not matter."""

    json: Annotated[bool, "print JSON"] = False

    def run(self) -> int:
        from sfumato.noise import SPACINGS
        from sfumato.sampling import TABLE

        spacings = {n: [a for a, canonical in SPACINGS.aliases.items() if canonical == n] for n in SPACINGS}
        if self.json:
            solvers = {name: asdict(solver) for name, solver in TABLE.items()}
            print(json.dumps({"samplers": solvers, "spacings": spacings}, indent=2))
            return 0
        rows = [("name", "title", "order", "asks/step", "noise", "spacing", "also called")]
        for name, solver in TABLE.items():
            noise = "draws" if solver.stochastic else "-"
            rows.append((name, solver.title, str(solver.order), str(solver.queries), noise, solver.spacing,
                         ", ".join(solver.aliases)))  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
        print("\nspacings (--spacing; a sampler's name may end in one: \"DPM++ 2M Karras\")")
        for name, aliases in spacings.items():
            print(f"  {name}" + (f"  ({', '.join(aliases)})" if aliases else ""))
        return 0
