"""Appendix C's w(t): how much each timestep of the noise schedule counts in stage 3's loss."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kosmosg.errors import ConfigError

LossWeighting = Literal["uniform", "snr", "min_snr"]


def loss_weights(
    weighting: LossWeighting,
    alphas_cumprod: Float[Tensor, " timesteps"],
    *,
    min_snr_gamma: float | None,
) -> Float[Tensor, " timesteps"]:
    """Return what the squared error of the noise counts at each timestep.

    Args:
        weighting: `uniform`: 1, as released. `snr`: what makes the loss the divergence of
            equations 7 and 11, SNR(t-1) / SNR(t) - 1, scaled to a mean of 1; the first timestep,
            which has none before it, counts like the second. `min_snr`: min(SNR, gamma) / SNR.
        alphas_cumprod: The share of the signal that each timestep keeps; SNR is kept / lost.
        min_snr_gamma: Of `min_snr` alone.

    Raises:
        ConfigError: If gamma is missing where it is needed, or given where it does nothing.

    Source:
        Paper equation 8, which leaves w(t) open; NUMERICS section 13: the release has 1. Equation
        11 gives the ratio, see docs/sds.md. min-SNR is not in the paper: a small budget needs it.
    """
    if (weighting == "min_snr") != (min_snr_gamma is not None):
        raise ConfigError(
            f"stage.min_snr_gamma = {min_snr_gamma} with stage.loss_weighting = {weighting}; gamma"
            " belongs to min_snr: give both (5 is usual) or neither"
        )
    kept = alphas_cumprod.float()
    signal_to_noise = kept / (1 - kept)
    if weighting == "uniform":
        return torch.ones_like(kept)
    if weighting == "snr":
        ratio = signal_to_noise[:-1] / signal_to_noise[1:] - 1
        ratio = torch.cat([ratio[:1], ratio])
        return ratio / ratio.mean()
    return signal_to_noise.clamp(max=min_snr_gamma) / signal_to_noise
