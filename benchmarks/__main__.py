"""``make bench``, or ``python -m benchmarks NAME … OPTIONS``: measurements against peers; each prints a table.

``python -m benchmarks NAME --help`` tells the options; without names all are run. ``table`` gathers in Markdown what
was found.
"""

import sys
from importlib import import_module
from inspect import signature
from itertools import takewhile

TABLE = {
    "startup": "benchmarks.startup:main",
    "load": "benchmarks.load:main",
    "text": "benchmarks.text:main",
    "unet_step": "benchmarks.unet_step:main",
    "dit_step": "benchmarks.dit_step:main",
    "decode": "benchmarks.decode:main",
    "picture": "benchmarks.picture:main",
    "first_picture": "benchmarks.first_picture:main",
    "training_step": "benchmarks.training_step:main",
    "kernels": "benchmarks.kernels:main",
    "memory": "benchmarks.memory:main",
    "lossy": "benchmarks.lossy:main",
    "requests": "benchmarks.requests:main",
    "table": "benchmarks.markdown:main",
}

if __name__ == "__main__":
    names = [*takewhile(lambda word: not word.startswith("-"), sys.argv[1:])]
    options = sys.argv[1 + len(names) :]
    if unknown := set(names) - set(TABLE):
        sys.exit(f"There is no benchmark {', '.join(sorted(unknown))}; known are {', '.join(TABLE)}.")
    for name in names or TABLE:
        module, attribute = TABLE[name].split(":")
        main = getattr(import_module(module), attribute)
        if options and "arguments" not in signature(main).parameters:
            sys.exit(f"{name} has no options.")
        main(options) if options else main()
