"""How predictions under several conditions become the one that the sampler follows."""

from jaxtyping import Float
from torch import Tensor


def guide(
    null_pred: Float[Tensor, "batch channels height width"],
    noise_pred: Float[Tensor, "batch channels height width"],
    *,
    guidance_scale: float,
) -> Float[Tensor, "batch channels height width"]:
    """Return the noise prediction pushed away from the null prompt's.

    Args:
        null_pred: The prediction under the null (or negative) prompt.
        noise_pred: The prediction under the prompt.
        guidance_scale: At least 1; 1 returns `noise_pred` unchanged.

    Raises:
        ValueError: If `guidance_scale` is below 1 (the pipeline skips the null half at 1 and below
            and never calls this).

    Source:
        Paper eq. 4, with w = guidance_scale.
    """
    if guidance_scale < 1:
        raise ValueError(f"guidance_scale is {guidance_scale}; below 1 there is no null half")
    if guidance_scale == 1:
        return noise_pred
    return null_pred + guidance_scale * (noise_pred - null_pred)
