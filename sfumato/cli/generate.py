"""``sfumato generate``."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from sfumato.cli import naming
from sfumato.cli.loading import Loading
from sfumato.cli.progress import bar
from sfumato.core.request import Request


@dataclass(frozen=True)
class Generate:
    """Draw pictures from a prompt. Each file holds its whole recipe: see `sfumato info` and `sfumato replay`."""

    request: Request
    loading: Loading
    output: Annotated[Path | None, "file to save as, or folder to save into; out/SEED-WORDS.png unless given"] = None
    fast: Annotated[bool, "short for --lossy fast: faster, and not the same; what that costs is in the notes"] = False
    grid: Annotated[bool, "save one more picture that shows them all"] = False
    preview: Annotated[Path | None, "picture file that shows, after each step, what is coming"] = None
    json: Annotated[bool, "print what was made as JSON"] = False
    quiet: Annotated[bool, "no progress bar, no notes"] = False

    positional: ClassVar = ("prompt",)
    spellings: ClassVar = {
        "output": ("-o",), "negative_prompt": ("-n",), "count": ("--batch-count",), "spacing": ("--schedule",),
        "model": ("-m",), "loras": ("--lora",), "prompt": ("--class-label",),
    }  # fmt: skip

    def run(self) -> int:
        folder, name = naming.destination(self.output)
        request = replace(self.request, lossy=(*self.request.lossy, "fast")) if self.fast else self.request
        pipeline = self.loading.open()
        with bar("drawing", shown=not self.quiet and sys.stderr.isatty()) as advance:
            on_step = advance if self.preview is None else showing(self.preview, pipeline, advance)
            result = pipeline(request, on_step=on_step)

        made = []
        for i, picture in enumerate(result.pictures):
            path = naming.place(folder, name, picture.seed, self.request.prompt, i, len(result.pictures))
            picture.save(path)
            made.append({"path": str(path), "seed": picture.seed, "width": picture.image.width,
                         "height": picture.image.height})  # fmt: skip
        report = {
            "pictures": made, "tokens": result.tokens, "notes": result.notes, "seconds": round(result.seconds, 3),
        }  # fmt: skip
        if self.grid:
            from sfumato.tasks.picture import grid

            path = naming.grid_place(folder, name, result.pictures[0].seed, self.request.prompt)
            grid(result.pictures).save(path)
            report["grid"] = str(path)
        if self.json:
            print(json.dumps(report, indent=2))
            return 0
        for line in [*(p["path"] for p in made), *([report["grid"]] if self.grid else [])]:
            print(line)
        if not self.quiet:
            for note in result.notes:
                print(f"note: {note}", file=sys.stderr)
        return 0


def showing(path: Path, pipeline: Any, advance: Callable[[Any], None] | None) -> Callable[[Any], None]:
    """A callback that keeps a rough picture of the latents in a file, for a viewer that watches it."""
    from sfumato.engine.preview import preview
    from sfumato.tasks.picture import Picture, grid

    def on_step(now: Any) -> None:
        grid([Picture(image) for image in preview(now.x0, pipeline.model.latent)]).save(path)
        if advance is not None:
            advance(now)

    return on_step
