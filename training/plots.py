"""Plots of a test: precision-recall, calibration, lift, importance. Written as PNG files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from validation.metrics import BINS, Floats

SIZE, DPI = (5.2, 3.6), 110
COLOURS = {
    "recency": "#b0b0b0",
    "logistic_rfm": "#8a8a8a",
    "bgnbd": "#5c7c8a",
    "logistic": "#7a5ca8",
    "lightgbm": "#1b6e53",
    "lstm": "#b4572c",
    "blend": "#111111",
}


def draw(folder: Path, y: Floats, probabilities: Mapping[str, Floats], importance: Mapping[str, Mapping[str, float]]) -> list[Path]:
    """Draw all plots of the models on the same test rows; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [
        _figure(folder / "precision_recall.png", "Precision and recall", "recall", "precision", _precision_recall, y, probabilities),
        _figure(
            folder / "calibration.png", "Calibration", "predicted churn probability", "observed churn rate", _calibration, y, probabilities
        ),
        _figure(
            folder / "lift.png", "Lift", "share of customers contacted, riskiest first", "churn rate over average", _lift, y, probabilities
        ),
    ]
    return drawn + [_importance(folder / f"importance_{name}.png", name, values) for name, values in importance.items()]


def _figure(path: Path, title: str, x: str, ylabel: str, curve: Any, y: Floats, probabilities: Mapping[str, Floats]) -> Path:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=SIZE, dpi=DPI)
    for name, p in probabilities.items():
        axes.plot(
            *curve(y, p), label=name, color=COLOURS.get(name), linewidth=1.6, marker="o" if curve is _calibration else None, markersize=3
        )
    if curve is _calibration:
        axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    axes.set(title=title, xlabel=x, ylabel=ylabel)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
    return path


def _precision_recall(y: Floats, p: Floats) -> tuple[Floats, Floats]:
    hits = np.cumsum(y[np.argsort(-p, kind="stable")])
    return hits / hits[-1], hits / np.arange(1, y.size + 1)


def _calibration(y: Floats, p: Floats) -> tuple[Floats, Floats]:
    bin_of = np.minimum((p * BINS).astype(int), BINS - 1)
    count = np.bincount(bin_of, minlength=BINS)
    filled = count > 0
    return tuple(np.bincount(bin_of, weights=w, minlength=BINS)[filled] / count[filled] for w in (p, y))  # type: ignore[return-value]


def _lift(y: Floats, p: Floats) -> tuple[Floats, Floats]:
    hits = np.cumsum(y[np.argsort(-p, kind="stable")])
    rank = np.arange(1, y.size + 1)
    start = max(1, y.size // 50)
    return (rank / y.size)[start:], (hits / rank / y.mean())[start:]


def _importance(path: Path, name: str, values: Mapping[str, float]) -> Path:
    from matplotlib import pyplot as plt

    top = sorted(values.items(), key=lambda item: item[1])[-15:]
    figure, axes = plt.subplots(figsize=SIZE, dpi=DPI)
    axes.barh([feature for feature, _ in top], [value for _, value in top], color=COLOURS.get(name))
    axes.set(title=f"What moves {name}, by family", xlabel="mean |contribution| to the log odds")
    axes.tick_params(axis="y", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
    return path
