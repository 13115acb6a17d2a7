"""``sfumato info``."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated


@dataclass(frozen=True)
class Info:
    """What a picture says of how it was made. Reads PNG, JPEG and WebP, sfumato's own and those of A1111."""

    file: Annotated[Path, "a picture"]
    json: Annotated[bool, "print the recipe as JSON"] = False

    def run(self) -> int:
        from sfumato.tasks.picture import Picture

        picture = Picture.open(self.file)
        for note in picture.notes:
            print(f"note: {note}", file=sys.stderr)
        if not picture.recipe and not picture.parameters:
            print(f"sfumato: {self.file} does not say how it was made.", file=sys.stderr)
            return 1
        if self.json:
            print(json.dumps(dict(picture.recipe) or {"parameters": picture.parameters}, indent=2))
            return 0
        print(picture.parameters)
        if picture.recipe:
            print("\nrecipe:")
            print(json.dumps(dict(picture.recipe), indent=2))
        return 0
