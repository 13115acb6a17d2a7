"""``sfumato explain``."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from sfumato.cli import naming
from sfumato.cli.generate import Generate
from sfumato.cli.loading import Loading
from sfumato.cli.progress import bar
from sfumato.core.request import Request


@dataclass(frozen=True)
class Explain:
    """Draw a picture, and show for each word of its prompt where the picture looked at it.

    The sheet is saved beside the picture. A word's share is that of all looking; most goes to the start of the prompt.
    """

    request: Request
    loading: Loading
    output: Annotated[Path | None, "file to save as, or folder to save into; out/SEED-WORDS.png unless given"] = None
    json: Annotated[bool, "print what was made as JSON"] = False
    quiet: Annotated[bool, "no progress bar, no notes"] = False

    positional: ClassVar = ("prompt",)
    spellings: ClassVar = Generate.spellings

    def run(self) -> int:
        folder, name = naming.destination(self.output)
        pipeline = self.loading.open()
        with bar("drawing", shown=not self.quiet and sys.stderr.isatty()) as on_step:
            found = pipeline.explain(self.request, on_step=on_step)
        path = naming.place(folder, name, found.picture.seed, self.request.prompt, 0, 1)
        sheet = path.with_stem(f"{path.stem}-words")
        found.picture.save(path)
        found.sheet().save(sheet)
        words = [{"word": word.text, "share": word.share} for word in found.words]
        if self.json:
            print(json.dumps({"picture": str(path), "sheet": str(sheet), "words": words}, indent=2))
            return 0
        print(path, sheet, sep="\n")
        if not self.quiet:
            for word in found.words:
                print(f"{word.share:6.1%}  {word.text}", file=sys.stderr)
        return 0
