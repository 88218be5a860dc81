"""Tuned, blended and calibrated models of one feature table: the part that `holdfast train` and `holdfast benchmark` share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from features.errors import InputError
from training import tune
from training.config import TrainConfig
from training.dataset import TrainingData
from training.models.base import Candidate, Floats, Model, Rows, level_shift, logit, sigmoid
from training.models.bgnbd import BgNbd
from training.models.blend import Blend, mixed, stack
from training.models.calibration import Calibration
from training.models.column import BestColumn
from training.models.level import Demand, Level, forecast
from training.models.logistic import Logistic
from training.models.recency import Recency
from training.models.scorer import Scorer, members
from training.models.timing import Timing
from validation.metrics import log_loss

BASELINES = (Recency, Logistic, BgNbd)
NEEDED_BY_BASELINES = {"recency_days", "frequency_orders", "monetary_net", "tenure_days", "active_days"}
LASTING = 0.2
"""Share of the level shift of the last calibration snapshot that is taken to last where no season is known: .25^2 / (.25^2 + .5^2), the
standard deviations of what lasts and what passes of it (notebooks/LOG.md, 2026-11-21)."""
Progress = Callable[[str], None]
Baseline = type[Recency] | type[Logistic] | type[BgNbd] | type[BestColumn]
Fit = Callable[[Rows], Model]
TrialTold = Callable[[str, int, FrozenTrial], None]


@dataclass(frozen=True)
class OutOfTime:
    """A model's own probabilities on each calibration snapshot, from what was known then, and the final model."""

    model: Model
    samples: dict[datetime, Floats]


@dataclass(frozen=True)
class Fitted:
    """One calibrated model."""

    model: Model
    calibration: Calibration
    level: Level
    selection_log_loss: float
    """On the last calibration snapshot, with blend, calibration and level from the ones before: picks the challenger."""
    params: dict[str, Any] = field(default_factory=dict)

    def predict(self, rows: Rows) -> Floats:
        """Calibrated probabilities, shape (n,)."""
        return sigmoid(self.level.calibrate(logit(self.model.predict(rows)), rows.snapshot, self.calibration))

    def scorer(self, data: TrainingData, timing: Timing | None) -> Scorer:
        """As it is registered and served."""
        assert isinstance(self.model, Candidate)
        return Scorer(self.model, self.calibration, self.level, data.manifest, timing)


def out_of_time(fit: Fit, data: TrainingData, progress: Progress = lambda line: None) -> OutOfTime:
    """Predict every calibration snapshot out of time, then fit the final model."""
    samples = {}
    for origin in data.split.calibration:
        progress(f"predicting {origin:%Y-%m-%d} out of time")
        samples[origin] = fit(data.before(origin)).predict(data.at([origin]))
    progress(f"refit on {len(data.split.before(data.split.test))} snapshots")
    return OutOfTime(fit(data.before(data.split.test)), samples)


def calibrated(found: OutOfTime, data: TrainingData, demand: Demand | None, params: dict[str, Any] | None = None) -> Fitted:
    """Calibration and level of a model from its out-of-time predictions.

    Baselines pass through it too: whatever calibration and level give or take, they give and take from every model.
    """
    samples = [(p, data.at([origin]).y) for origin, p in found.samples.items()]
    *earlier, (last, (p, y)) = list(zip(found.samples, samples, strict=True))
    judged = _levelled([sample for _, sample in earlier], [last], [p], demand)
    selection = log_loss(y, sigmoid(judged[1].calibrate(logit(p), np.full(p.size, np.datetime64(last, "us")), judged[0])))
    moments, ahead = [data.split.test], [found.model.predict(data.at([data.split.test]))]
    if len(data.latest):
        moments, ahead = [*moments, data.latest.snapshot[0].item()], [*ahead, found.model.predict(data.latest)]
    return Fitted(found.model, *_levelled(samples, moments, ahead, demand), selection, params or {})


def _levelled(
    samples: list[tuple[Floats, Floats]], moments: list[datetime], ahead: list[Floats], demand: Demand | None
) -> tuple[Calibration, Level]:
    """Calibration from past samples, and the forecast of the level at the moments whose populations have probabilities ``ahead``."""
    calibration = Calibration.fit(samples) if samples else Calibration("platt", [1.0])
    drift = LASTING * level_shift(logit(samples[-1][0]), samples[-1][1]) if samples else 0.0
    level = {moment: forecast(demand, moment, p, calibration, drift) for moment, p in zip(moments, ahead, strict=True)}
    return calibration, Level(level)


def blended(by_name: Mapping[str, OutOfTime], data: TrainingData, demand: Demand | None) -> Fitted:
    """The stacked blend of the members, its weights fitted on all calibration snapshots; for the selection loss, on all but the last."""
    origins = data.split.calibration
    parts = [([found.samples[origin] for found in by_name.values()], data.at([origin]).y) for origin in origins]
    member_weights = stack(parts)
    blend = Blend([found.model for found in by_name.values()], member_weights)  # type: ignore[misc]
    samples = {origin: mixed(some, member_weights) for origin, (some, _) in zip(origins, parts, strict=True)}
    fitted = calibrated(OutOfTime(blend, samples), data, demand, _weights(by_name, member_weights))
    before = stack(parts[:-1]) if len(parts) > 1 else np.full(len(by_name), 1 / len(by_name))
    honest = OutOfTime(blend, {origin: mixed(some, before) for origin, (some, _) in zip(origins, parts, strict=True)})
    selection = calibrated(honest, data, demand).selection_log_loss
    return Fitted(fitted.model, fitted.calibration, fitted.level, selection, fitted.params)


def _weights(by_name: Mapping[str, OutOfTime], found: Floats) -> dict[str, Any]:
    return {f"weight_{name}": round(weight, 4) for name, weight in zip(by_name, found.tolist(), strict=True)}


def candidates(
    data: TrainingData, config: TrainConfig, storage: str, progress: Progress, told: TrialTold = lambda name, number, trial: None
) -> dict[str, Fitted]:
    """Tune the members of ``config``, and blend them where there are several; by name, the blend last."""
    if not (names := possible(data, config)):
        raise InputError(f"--model {config.model}", "the table has no sequences to learn from", "choose lightgbm, logistic or blend")
    params = {name: tuned(name, data, config, storage, progress, told) for name in names}
    return fitted(params, data, config.seed, progress)


def fitted(
    params: Mapping[str, dict[str, Any]], data: TrainingData, seed: int, progress: Progress = lambda line: None
) -> dict[str, Fitted]:
    """Models of known hyper-parameters, and their blend."""
    demand, found = data.demand(), {}
    for name, chosen in params.items():
        found[name] = out_of_time(partial(members()[name].fit, chosen, seed=seed), data, _prefixed(name, progress))
    ready = {name: calibrated(one, data, demand, params[name]) for name, one in found.items()}
    return ready | ({Blend.name: blended(found, data, demand)} if len(found) > 1 else {})


def baselines(data: TrainingData) -> dict[str, Fitted]:
    """Recency, RFM and BG/NBD; of a table without the columns they read, the best of its columns."""
    kinds: tuple[Baseline, ...] = BASELINES if set(data.manifest.names) >= NEEDED_BY_BASELINES else (BestColumn,)
    return {kind.name: baseline(kind, data) for kind in kinds}


def baseline(kind: Baseline, data: TrainingData) -> Fitted:
    """One baseline, calibrated as every model is."""
    return calibrated(out_of_time(partial(kind.fit, horizon_days=data.manifest.horizon_days), data), data, data.demand())


def tuned(name: str, data: TrainingData, config: TrainConfig, storage: str, progress: Progress, told: TrialTold) -> dict[str, Any]:
    """The best hyper-parameters of a candidate's study."""
    asked, clock = config.trials_of(name), _Clock()

    def one(number: int, trial: FrozenTrial) -> None:
        told(name, number, trial)
        progress(f"{name}: {clock.told(number + 1, asked, trial)}")

    return tune.best_params(tune.tune(members()[name], data, config, storage, one), asked)


def possible(data: TrainingData, config: TrainConfig) -> list[str]:
    """The members that the table can feed: without sequences there is no LSTM in a blend."""
    return [name for name in config.members if data.manifest.channels or not members()[name].reads_sequences]


def _prefixed(name: str, progress: Progress) -> Progress:
    return lambda line: progress(f"{name}: {line}")


class _Clock:
    """What a study has reached, how fast, and how long it will take."""

    def __init__(self) -> None:
        import time

        self.now = time.monotonic
        self.start, self.fresh, self.best = self.now(), 0, float("inf")

    def told(self, number: int, asked: int, trial: FrozenTrial) -> str:
        """One line after a trial."""
        complete = trial.state == TrialState.COMPLETE and trial.value is not None
        self.best = min(self.best, trial.value) if complete else self.best  # type: ignore[type-var]
        self.fresh += 1
        seconds = max(self.now() - self.start, 1e-3)
        value = f"log loss {trial.value:.4f}" if complete else "pruned"
        left = (asked - number) * seconds / self.fresh
        return f"trial {number} of {asked}, {value}, best {self.best:.4f}; {60 * self.fresh / seconds:.0f} a minute, {left:.0f} s left"
