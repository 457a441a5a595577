import pytest
import torch
from torch.distributions import Normal, kl_divergence

from kosmosg.errors import ConfigError
from kosmosg.model.image_decoder import scheduler
from kosmosg.train.weighting import loss_weights

KEPT = scheduler("ddim").alphas_cumprod
SNR = KEPT / (1 - KEPT)


def test_uniform_is_one_everywhere() -> None:
    assert torch.equal(loss_weights("uniform", KEPT, min_snr_gamma=None), torch.ones(1000))


def test_min_snr_is_what_nano_was_trained_with() -> None:
    weights = loss_weights("min_snr", KEPT, min_snr_gamma=5.0)
    timesteps = torch.arange(1000)
    kept = KEPT[timesteps].float()
    ratio = kept / (1 - kept)
    assert torch.equal(weights[timesteps], ratio.clamp(max=5.0) / ratio)
    assert weights[999] == 1.0
    assert weights[0] == pytest.approx(5 * 0.00085 / (1 - 0.00085), rel=1e-3)


@pytest.mark.parametrize("timestep", [1, 10, 300, 999])
def test_snr_makes_the_loss_the_divergence_of_equation_11(timestep: int) -> None:
    """Both Gaussians of one step back, by their means and variances, in float64."""
    generator = torch.Generator().manual_seed(0)
    latents, noise, guess = (
        torch.randn(64, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    # The schedule anew in float64: the ratio of neighbours loses digits in float32.
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - betas).cumprod(0)
    now, before, beta = kept[timestep], kept[timestep - 1], betas[timestep]
    noisy = now.sqrt() * latents + (1 - now).sqrt() * noise
    variance = (1 - before) / (1 - now) * beta
    backward = before.sqrt() * beta / (1 - now), (1 - beta).sqrt() * (1 - before) / (1 - now)
    mean = backward[0] * latents + backward[1] * noisy
    guessed = (noisy - beta / (1 - now).sqrt() * guess) / (1 - beta).sqrt()  # equation 2
    divergence = kl_divergence(Normal(mean, variance**0.5), Normal(guessed, variance**0.5))

    ratios = kept[:-1] / (1 - kept[:-1]) / (kept[1:] / (1 - kept[1:])) - 1
    scale = torch.cat([ratios[:1], ratios]).mean() / 2
    weight = loss_weights("snr", KEPT, min_snr_gamma=None)[timestep].double()
    torch.testing.assert_close(
        divergence.sum(), scale * weight * (guess - noise).square().sum(), rtol=1e-3, atol=0
    )


def test_snr_has_a_mean_of_one_and_weighs_the_least_noise_most() -> None:
    weights = loss_weights("snr", KEPT, min_snr_gamma=None)
    assert weights.mean() == pytest.approx(1.0)
    assert weights[0] == weights[1] == weights.max()
    assert weights[0] > 50
    assert weights[500] < weights[999] < 1


@pytest.mark.parametrize(
    ("weighting", "gamma"), [("uniform", 5.0), ("snr", 5.0), ("min_snr", None)]
)
def test_gamma_belongs_to_min_snr(weighting: str, gamma: float | None) -> None:
    with pytest.raises(
        ConfigError, match=f"min_snr_gamma = {gamma} .*loss_weighting = {weighting}"
    ):
        loss_weights(weighting, KEPT, min_snr_gamma=gamma)
