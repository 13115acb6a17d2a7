"""What every test may ask for."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent

# The same numbers on every machine: a GPU is not seen, unless `make test-cuda` asks for what is tested on it.
if not os.environ.get("SFUMATO_TEST_CUDA"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# The same examples in every run, and no time limit on any: a busy machine is not a failure.
settings.register_profile("everyday", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("everyday")


def shared(name: str = "") -> Path:
    """A file of the folder of large test material beside the checkout; the test is skipped where there is none."""
    path = Path(os.environ.get("SFUMATO_SHARED", ROOT.parent / "shared")) / name
    if not path.exists():
        pytest.skip(f"no {path}")
    return path
