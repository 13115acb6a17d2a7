"""``make bench``, or ``python -m benchmarks NAME …``: measurements against peers; each prints a table."""

import sys
from importlib import import_module

TABLE = {
    "startup": "benchmarks.startup:main",
    "unet_step": "benchmarks.unet_step:main",
    "dit_step": "benchmarks.dit_step:main",
    "decode": "benchmarks.decode:main",
    "load": "benchmarks.load:main",
    "picture": "benchmarks.picture:main",
    "training_step": "benchmarks.training_step:main",
    "kernels": "benchmarks.kernels:main",
    "memory": "benchmarks.memory:main",
    "lossy": "benchmarks.lossy:main",
    "requests": "benchmarks.requests:main",
}

if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - set(TABLE)
    if unknown:
        sys.exit(f"There is no benchmark {', '.join(sorted(unknown))}; known are {', '.join(TABLE)}.")
    for name in sys.argv[1:] or TABLE:
        module, attribute = TABLE[name].split(":")
        getattr(import_module(module), attribute)()
