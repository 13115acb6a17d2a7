"""Weight-decomposed adaptation: Liu et al., "DoRA: weight-decomposed low-rank adaptation", 2024, section 4.

Whatever form the change has, it turns the weight's rows (or columns) alone; how long they are is learned beside it.
"""

from collections.abc import Mapping

from torch import Tensor

ENDINGS = {
    ".dora_scale": "dora_scale",  # LyCORIS and kohya
    ".lora_magnitude_vector": "magnitude",  # peft
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude",
}


def learned(factors: Mapping[str, object]) -> bool:
    """Whether lengths were learned with these."""
    return not factors.keys().isdisjoint(ENDINGS.values())


def decomposed(changed: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
    """``m (W + D) / |W + D|`` (ibid., eq. 5).

    Args:
        changed: ``W + D`` [out, in, …].
        factors: ``magnitude``, of each output in any shape; or ``dora_scale``, [out, 1, …] or, of inputs, [1, in, …].

    Raises:
        RuntimeError: they do not fit the weight.
    """
    if "magnitude" in factors:
        length = factors["magnitude"].reshape(len(changed), *[1] * (changed.ndim - 1))
    else:
        length = factors["dora_scale"]
        length = length.reshape(*length.shape, *[1] * (changed.ndim - length.ndim))
    outputs = len(length) == len(changed)
    norm = changed.transpose(0, 0 if outputs else 1).flatten(1).norm(dim=1)  # [out] or [in]
    norm = norm.reshape(-1, *[1] * (changed.ndim - 1)) if outputs else norm.reshape(1, -1, *[1] * (changed.ndim - 2))
    made: Tensor = changed * (length / norm)
    return made
