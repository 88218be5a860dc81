"""Pure metrics ``(y, p) -> float`` of churn probabilities, and bootstrap intervals around them.

``y`` (n,) holds 1.0 for churned, ``p`` (n,) probabilities. They agree with scikit-learn (tested); they are
written here because an interval calls them thousands of times.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

Floats = npt.NDArray[np.float64]
Metric = Callable[[Floats, Floats], float]

BINS = 15
LIFT_SHARE = 0.10
THRESHOLD = 0.5
_EPS = 1e-15


def auc(y: Floats, p: Floats) -> float:
    """Area under the ROC curve (Mann-Whitney, ties count half); NaN with one class."""
    positives = y.sum()
    negatives = y.size - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(p)
    return float((ranks[y == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def pr_auc(y: Floats, p: Floats) -> float:
    """Average precision: precision at each distinct score, weighted by the recall it adds."""
    order = np.argsort(-p, kind="stable")
    hits = np.cumsum(y[order])
    ends = np.append(np.flatnonzero(np.diff(p[order])), p.size - 1)
    precision = hits[ends] / (ends + 1)
    return float(np.sum(np.diff(hits[ends], prepend=0) * precision) / hits[-1]) if hits[-1] else float("nan")


def log_loss(y: Floats, p: Floats) -> float:
    """Mean negative log likelihood."""
    q = np.clip(p, _EPS, 1 - _EPS)
    return float(-np.mean(y * np.log(q) + (1 - y) * np.log1p(-q)))


def brier(y: Floats, p: Floats) -> float:
    """Mean squared error of the probability."""
    return float(np.mean((p - y) ** 2))


def ece(y: Floats, p: Floats) -> float:
    """Expected calibration error over 15 bins of equal width (Naeini et al. 2015)."""
    bin_of = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    gap = np.bincount(bin_of, weights=p - y, minlength=BINS)
    return float(np.abs(gap).sum() / y.size)


def accuracy(y: Floats, p: Floats) -> float:
    """Share of right calls at a threshold of one half."""
    return float(np.mean((p >= THRESHOLD) == (y == 1)))


def lift_10(y: Floats, p: Floats) -> float:
    """Churn rate among the 10 % with the highest probability over the overall rate."""
    top = np.argsort(-p, kind="stable")[: max(1, round(LIFT_SHARE * p.size))]
    return float(y[top].mean() / y.mean()) if y.any() else float("nan")


METRICS: Mapping[str, Metric] = {
    "auc": auc,
    "pr_auc": pr_auc,
    "log_loss": log_loss,
    "brier": brier,
    "ece": ece,
    "accuracy": accuracy,
    "lift_10": lift_10,
}


def resamples(rows: int, draws: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Bootstrap row numbers; the same for every model, so that differences are paired."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, rows, rows) for _ in range(draws)]


def with_intervals(y: Floats, p: Floats, draws: int, seed: int, metrics: Mapping[str, Metric] = METRICS) -> dict[str, list[float]]:
    """Each metric as ``[value, low, high]`` with a 95 % percentile bootstrap interval over customers."""
    samples = resamples(y.size, draws, seed)
    found = {}
    for name, metric in metrics.items():
        values = [metric(y[rows], p[rows]) for rows in samples]
        low, high = np.nanpercentile(values, [2.5, 97.5])
        found[name] = [metric(y, p), float(low), float(high)]
    return found


def difference(metric: Metric, y: Floats, p: Floats, rival: Floats, draws: int, seed: int) -> list[float]:
    """``metric(p) - metric(rival)`` on the same rows as ``[value, low, high]``, paired bootstrap, 95 %."""
    values = [metric(y[rows], p[rows]) - metric(y[rows], rival[rows]) for rows in resamples(y.size, draws, seed)]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return [metric(y, p) - metric(y, rival), float(low), float(high)]


def wilson(successes: float, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (nan, nan) without trials."""
    if not trials:
        return float("nan"), float("nan")
    p, n = successes / trials, trials
    centre, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def brier_parts(y: Floats, p: Floats) -> dict[str, float]:
    """Murphy's (1973) decomposition over 15 bins of equal width: brier ~ reliability - resolution + uncertainty."""
    bin_of = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(bin_of, minlength=BINS)
    some = count > 0
    mean_p, mean_y = (np.bincount(bin_of, weights=v, minlength=BINS)[some] / count[some] for v in (p, y))
    share, rate = count[some] / y.size, float(y.mean())
    reliability, resolution = float(share @ (mean_p - mean_y) ** 2), float(share @ (mean_y - rate) ** 2)
    return {"reliability": reliability, "resolution": resolution, "uncertainty": rate * (1 - rate)}


def band(y: Floats, p: Floats, threshold: float) -> dict[str, float]:
    """Customers at or above a threshold: how many, their share, precision and recall (NaN without any)."""
    inside = p >= threshold
    hits, found = float(y[inside].sum()), int(inside.sum())
    precision, recall = (hits / whole if whole else float("nan") for whole in (found, float(y.sum())))
    return {"threshold": threshold, "customers": found, "share": found / y.size, "precision": precision, "recall": recall}


def best_threshold(y: Floats, p: Floats, value: Floats, effect: float, cost: float) -> dict[str, float]:
    """The threshold above which contacting everybody gains most: ``sum(y * effect * value - cost)`` of those contacted.

    ``value`` (n,) is what a customer is worth in the horizon, ``effect`` the share of churners whom a contact keeps.
    """
    order = np.argsort(-p, kind="stable")
    gained = np.cumsum(y[order] * effect * value[order] - cost)
    best = int(np.argmax(gained))
    if gained[best] <= 0:
        return {"threshold": 1.0, "customers": 0, "gain": 0.0}
    return {"threshold": float(p[order][best]), "customers": best + 1, "gain": float(gained[best])}


def estimated(p: Floats) -> dict[str, float]:
    """Metrics expected from calibrated probabilities alone, before any label is known (confidence-based performance estimation).

    A customer is churned with probability p and not with 1 - p: AUC, accuracy, log loss and Brier score are the means over both.
    """
    q = np.clip(p, _EPS, 1 - _EPS)
    order = np.argsort(p, kind="stable")
    churn, stay = p[order], 1 - p[order]
    pairs = float(churn @ (np.cumsum(stay) - stay / 2))  # expected pairs in the right order, a customer against itself counted half
    return {
        "auc": pairs / (churn.sum() * stay.sum()),
        "accuracy": float(np.mean(np.where(p >= THRESHOLD, p, 1 - p))),
        "log_loss": float(-np.mean(q * np.log(q) + (1 - q) * np.log1p(-q))),
        "brier": float(np.mean(p * (1 - p))),
        "churn_rate": float(p.mean()),
    }
