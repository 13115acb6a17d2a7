"""A wheel brings the native kernels along, compiled, where it is built beside PyTorch (`make wheel`).

Elsewhere, as in an isolated build, it is pure Python, and the kernels are compiled where they are first used.
"""

import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeKernels(BuildHookInterface[Any]):
    """Adds the libraries of ``sfumato.nn.native`` to a wheel, which is then one for Linux on x86-64."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or find_spec("torch") is None:
            return
        sys.path.insert(0, self.root)
        from sfumato.nn.native.build import SOURCE, BuildError, build_beforehand

        self.made = tempfile.TemporaryDirectory()
        try:
            libraries = build_beforehand(Path(self.made.name))
        except BuildError as problem:
            self.app.display_warning(f"The wheel is without compiled kernels: {problem}.")
            return
        place = SOURCE.parent.relative_to(self.root)
        build_data["force_include"].update({str(library): str(place / library.name) for library in libraries})
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"
