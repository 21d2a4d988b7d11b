"""The two-sided 95 % interval of a metric that is a mean over samples."""

import math

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 2_000


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """(low, high) of the mean of per-sample values; (NaN, NaN) where one of them is not finite, or there are none.

    Values of only zeros and ones get the exact binomial interval (Clopper and Pearson, Biometrika 26, 1934), others
    the percentile bootstrap (Efron 1979), with a fixed seed.
    """
    if values.size == 0 or not np.isfinite(values).all():
        return math.nan, math.nan
    if np.isin(values, (0.0, 1.0)).all():
        return binomial_interval(int(values.sum()), values.size)
    random = np.random.default_rng(0)
    means = [values[random.integers(0, values.size, values.size)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def binomial_interval(successes: int, trials: int) -> tuple[float, float]:
    """The exact two-sided interval of a success rate."""
    from scipy.stats import beta

    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes == trials else float(beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high
