"""``sfumato models``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any


@dataclass(frozen=True)
class Models:
    """The families that sfumato knows, the model that comes with it, and those in the local hub cache."""

    json: Annotated[bool, "print JSON"] = False

    def run(self) -> int:
        from huggingface_hub.constants import HF_HUB_CACHE

        from sfumato.core.shipped import FOLDERS
        from sfumato.families import FAMILIES

        families = {}
        for name in FAMILIES:
            family = FAMILIES.get(name)
            families[name] = {"title": family.title, "tasks": list(family.tasks)}
        cached = [*cached_models(Path(HF_HUB_CACHE))]
        if self.json:
            told = {"families": families, "shipped": [*FOLDERS], "cache": HF_HUB_CACHE, "cached": cached}
            print(json.dumps(told, indent=2))
            return 0
        print("families (--family, where a checkpoint could be of several)")
        for name, about in families.items():
            print(f"  {name:<14} {about['title']:<40} {', '.join(about['tasks']) or '-'}")
        print("\ncome with sfumato")
        for name in FOLDERS:
            print(f"  {name}")
        print(f"\nin {HF_HUB_CACHE}")
        for model in cached:
            print(f"  {model['name']:<52} {model['bytes'] / 1e9:>6.2f} GB  {model['pipeline']}")
        if not cached:
            print("  no models")
        return 0


def cached_models(cache: Path) -> list[dict[str, Any]]:
    """Model folders in a hub cache: name as ``--model`` takes it, pipeline class, bytes."""
    found = []
    for index in sorted(cache.glob("models--*/snapshots/*/model_index.json")):
        snapshot = index.parent
        name = snapshot.parent.parent.name.removeprefix("models--").replace("--", "/")
        try:
            pipeline = json.loads(index.read_text(encoding="utf-8")).get("_class_name", "?")
        except (OSError, ValueError, AttributeError):
            pipeline = "its model_index.json cannot be read"
        size = sum(file.stat().st_size for file in snapshot.rglob("*") if file.is_file())
        found.append({"name": name, "pipeline": pipeline, "bytes": size, "path": str(snapshot)})
    return found
