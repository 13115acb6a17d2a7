"""Opening an SD1.5 of true size: seconds and peak memory of a fresh process, beside diffusers.

"ready" is what the first picture starts from: sfumato's networks packed for the CPU. The files are in the disk's cache.
"""

import json
import subprocess
import sys
from statistics import median

from benchmarks import fullsize

ROWS = {
    "diffusers": "import torch, diffusers; t = now(); p = diffusers.StableDiffusionPipeline.from_pretrained({place!r},"
    " safety_checker=None); m = p.unet, p.vae, p.text_encoder",
    "sfumato": "import torch, sfumato; sfumato.load; t = now(); p = sfumato.load({place!r}, device='cpu');"
    " m = tuple(p.model.parts.values())",
    "sfumato, ready": "import torch, sfumato; sfumato.load; t = now(); p = sfumato.load({place!r}, device='cpu');"
    " p.make_ready(); m = tuple(p.model.parts.values())",
}
FRAME = """
import json, resource, time; now = time.perf_counter
{body}
seconds = now() - t
total = sum(float(x.sum()) for part in m for x in (*part.parameters(), *part.buffers()) if x.is_floating_point())
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6]))
"""
"""Every weight is read once after loading, so that what was only mapped is counted too."""


def main(turns: int = 3) -> None:
    place = str(fullsize.folder())
    found: dict[str, list[list[float]]] = {name: [] for name in ROWS}
    for turn in range(turns + 1):
        for name, body in ROWS.items():
            code = FRAME.format(body=body.format(place=place))
            out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
            if turn:
                found[name].append(json.loads(out.splitlines()[-1]))
    print(f"{'open SD1.5, 4.27 GB':<24} {'median s':>9} {'peak GB':>8}")
    for name, times in found.items():
        print(f"{name:<24} {median(t for t, _ in times):>9.2f} {median(m for _, m in times):>8.2f}")


if __name__ == "__main__":
    main()
