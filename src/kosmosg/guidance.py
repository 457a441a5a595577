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


def guide_apart(
    null_pred: Float[Tensor, "batch channels height width"],
    pictures_pred: Float[Tensor, "batch channels height width"],
    noise_pred: Float[Tensor, "batch channels height width"],
    *,
    text_guidance_scale: float,
    picture_guidance_scale: float,
) -> Float[Tensor, "batch channels height width"]:
    """Return the prediction pushed from nothing to the pictures, and on to the whole prompt.

    Where `pictures_pred` is `null_pred` (a prompt without pictures) only the text's scale counts,
    and where it is `noise_pred` (nothing but pictures) only the pictures', both to the bit.

    Args:
        null_pred: The prediction under the null (or negative) prompt.
        pictures_pred: The prediction under the prompt's pictures alone, in their order.
        noise_pred: The prediction under the prompt.
        text_guidance_scale: How far towards what the words add to the pictures.
        picture_guidance_scale: How far towards what the pictures say alone.

    Source:
        The two scales of InstructPix2Pix (Brooks et al. 2023, eq. 3), words and pictures as here.
    """
    shown = null_pred + picture_guidance_scale * (pictures_pred - null_pred)
    return shown + text_guidance_scale * (noise_pred - pictures_pred)


def rescale(
    guided_pred: Float[Tensor, "batch channels height width"],
    noise_pred: Float[Tensor, "batch channels height width"],
    *,
    guidance_rescale: float,
) -> Float[Tensor, "batch channels height width"]:
    """Return the guided prediction with its spread moved towards the unguided one's.

    Strong guidance makes the prediction's standard deviation too large, and pictures too contrasty.

    Args:
        guided_pred: What guidance made.
        noise_pred: The prediction under the prompt.
        guidance_rescale: 0 returns `guided_pred` unchanged; 1 gives it the spread of `noise_pred`.

    Source:
        Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", eq. 15-16.
    """
    if guidance_rescale == 0:
        return guided_pred
    dims = tuple(range(1, noise_pred.ndim))
    ratio = noise_pred.std(dim=dims, keepdim=True) / guided_pred.std(dim=dims, keepdim=True)
    return guidance_rescale * (guided_pred * ratio) + (1 - guidance_rescale) * guided_pred
