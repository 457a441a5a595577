"""From features to numbers: similarities, the Fréchet distance, and how sure one is of a mean."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from kosmosg.errors import ConfigError

NUM_RESAMPLES = 10_000


def cosine(
    one: Float[Tensor, "n features"], other: Float[Tensor, "m features"]
) -> Float64[Tensor, "n m"]:
    """Return the similarity of each of `one` to each of `other`, -1 to 1, in float64."""
    one, other = (torch.nn.functional.normalize(x.double(), dim=1) for x in (one, other))
    return one @ other.T


@dataclass(kw_only=True)
class Moments:
    """Sums over features, float64, from which come their mean and covariance."""

    count: int
    total: Float64[Tensor, " features"]
    outer: Float64[Tensor, "features features"]

    @classmethod
    def of_none(cls, num_features: int) -> "Moments":
        """Return the sums of no pictures."""
        return cls(
            count=0,
            total=torch.zeros(num_features, dtype=torch.float64),
            outer=torch.zeros(num_features, num_features, dtype=torch.float64),
        )

    def add(self, features: Float[Tensor, "n features"]) -> None:
        """Count these in."""
        features = features.cpu().double()
        self.count += len(features)
        self.total += features.sum(0)
        self.outer += features.T @ features

    @property
    def mean(self) -> Float64[Tensor, " features"]:
        """The mean of the features."""
        return self.total / self.count

    @property
    def covariance(self) -> Float64[Tensor, "features features"]:
        """Their covariance, with n - 1 below the line."""
        centred = self.outer - torch.outer(self.total, self.total) / self.count
        return centred / (self.count - 1)


def frechet_distance(real: Moments, fake: Moments) -> float:
    """Return FID: how far apart two normal distributions of features are; 0 for the same one.

    Raises:
        ConfigError: If either counts fewer than two pictures.

    Source:
        Heusel et al. 2017: |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)).
    """
    for moments, name in ((real, "real"), (fake, "drawn")):
        if moments.count < 2:
            raise ConfigError(f"{moments.count} {name} pictures have no FID; give at least 2")
    difference = (real.mean - fake.mean).square().sum()
    traces = real.covariance.trace() + fake.covariance.trace()
    # tr (C C')^(1/2) is that of the symmetric C^(1/2) C' C^(1/2): real roots, and no Schur form.
    values, vectors = torch.linalg.eigh(real.covariance)
    root = vectors * values.clamp_min(0).sqrt()
    inner = torch.linalg.eigvalsh(root.T @ fake.covariance @ root)
    return float(difference + traces - 2 * inner.clamp_min(0).sqrt().sum())


@dataclass(frozen=True, kw_only=True)
class Score:
    """A mean and its 95% interval; both ends are the mean where there is but one subject."""

    mean: float
    low: float
    high: float


def bootstrap(by_subject: Mapping[str, Sequence[float]], *, seed: int = 0) -> Score:
    """Return the mean of all values, and its interval when subjects are drawn anew.

    Subjects are what a benchmark has few of: pictures of one are not independent, so whole
    subjects are drawn, each with all its values.

    Raises:
        ConfigError: If there is no value.
    """
    groups = [np.asarray(values, np.float64) for values in by_subject.values() if len(values)]
    if not groups:
        raise ConfigError("there is nothing to average: no picture was scored")
    sums = np.array([group.sum() for group in groups])
    counts = np.array([len(group) for group in groups])
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(groups), size=(NUM_RESAMPLES, len(groups)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Score(mean=float(sums.sum() / counts.sum()), low=float(low), high=float(high))
