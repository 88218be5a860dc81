"""challenger -> champion, or refused with reasons; the present champion stays in force until every gate passes."""

from dataclasses import asdict
from typing import Any

import pyarrow.parquet as pq

from features.errors import InputError, RefusedError
from features.files import read_json, write_json
from features.mapping import Dataset
from features.settings import Settings
from training import tracking
from training.dataset import TrainingData
from training.fit import BASELINES
from training.models.base import Floats, Rows
from training.registry import CHALLENGER, CHAMPION, DATASET, DIGEST, MODEL, Registry
from validation import gates
from validation.stages import Places


def promote(dataset: Dataset, places: Places, settings: Settings) -> dict[str, Any]:
    """Judge the challenger on the test snapshot and, when every gate passes, make it champion.

    Its rival is the present champion, or all baselines when there is none (or it knows another data set).
    Raises RefusedError with the reasons; then nothing has changed.
    """
    registry = Registry(tracking.connect(settings), dataset.model_name)
    challenger = registry.aliased(CHALLENGER)
    if challenger is None:
        raise InputError(f"models:/{dataset.model_name}@challenger", "there is no challenger", "run `holdfast train` first")
    champion = registry.aliased(CHAMPION)
    before = champion and {"version": str(champion.version), "model": champion.tags[MODEL]}
    told: dict[str, Any] = {"challenger": str(challenger.version), "model": challenger.tags[MODEL], "champion_before": before}
    if champion is not None and champion.tags.get(DIGEST) == challenger.tags[DIGEST]:
        return _earlier(places, told)
    data = TrainingData.read(places.features)
    facts = read_json(places.folder / "training.json")
    test = data.at([data.split.test])
    probabilities = registry.load(str(challenger.version)).predict(test)
    rivals, against = _rivals(registry, champion, data, test, places)
    config = facts["config"]
    verdicts = gates.promotion(test.y, probabilities, rivals, config["bootstrap_draws"], config["seed"])
    promoted = gates.passed(verdicts)
    told |= {"promoted": promoted, "against": against, "verdicts": [asdict(verdict) for verdict in verdicts]}
    if promoted:
        registry.note(str(challenger.version), {"holdfast.promoted_against": against, "holdfast.gates": "pass"})
        registry.point(CHAMPION, str(challenger.version))
    _told(places, told)
    if not promoted:
        reasons = "\n  ".join(f"{v.gate}: {v.outcome}: {v.reason}" for v in verdicts if v.outcome != "pass")
        stays = f"champion v{champion.version} stays" if champion else "there is no champion"
        raise RefusedError(f"challenger v{challenger.version} ({told['model']}) refused, {stays}:\n  {reasons}", champion is not None)
    return told


def _rivals(registry: Registry, champion: Any, data: TrainingData, test: Rows, places: Places) -> tuple[dict[str, Floats], str]:
    if champion is not None and champion.tags.get(DATASET) == data.manifest.dataset:
        scorer = registry.load(str(champion.version))
        return {f"champion v{champion.version}": scorer.predict(test)}, f"champion v{champion.version}"
    saved = pq.read_table(places.folder / "test_predictions.parquet")
    if saved["y"].to_numpy().tolist() != test.y.tolist():
        return {}, "nothing: the baselines were tested on other rows"
    why = "" if champion is None else f" (champion v{champion.version} knows another data set, {champion.tags.get(DATASET)})"
    return {kind.name: saved[kind.name].to_numpy() for kind in BASELINES}, "baselines" + why


def _earlier(places: Places, told: dict[str, Any]) -> dict[str, Any]:
    """The challenger is champion already: what was told when it became so."""
    file = places.folder / "promotion.json"
    earlier = read_json(file) if file.exists() else {}
    if earlier.get("challenger") == told["challenger"] and earlier.get("promoted"):
        return dict(earlier)
    return _told(places, {**told, "promoted": True, "against": "itself: it is champion already", "verdicts": []})


def _told(places: Places, told: dict[str, Any]) -> dict[str, Any]:
    write_json(places.folder / "promotion.json", told)
    return told
