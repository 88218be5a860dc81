"""challenger -> champion, or refused with reasons; the present champion stays in force until every gate passes."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion

from features import table
from features.errors import InputError, RefusedError
from features.files import read_json, write_json
from features.mapping import Promotion
from features.mlflow_client import NoAnswerError
from features.settings import Settings
from features.table import Manifest
from training import fit, journal, tracking
from training.config import TrainConfig
from training.dataset import TrainingData, split_of
from training.models.base import Rows
from training.models.scorer import Scorer
from training.registry import CHALLENGER, CHAMPION, DIGEST, GATES, MODEL, TABLE, Registry
from validation import gates
from validation.gates import Holdout, Judged, Verdict
from validation.stages import Places

JOURNAL = "promotions.jsonl"
"""Every decision on champions, in the data set's folder; `promotion.json` beside it is the last one, for the report."""
RETIRE = "to judge against the baselines instead, delete the alias `champion` in the registry"
SAME = ("horizon_days", "timezone", "currency")
"""What two models must agree on for their probabilities to answer one question of like features."""


def promote(model_name: str, places: Places, settings: Settings, floor: Promotion) -> dict[str, Any]:
    """Judge the challenger on the test snapshot and, when every gate passes, make it champion.

    Its rival is the present champion, or all baselines when there is none (or it knows another data set). What is decided is
    in the journal before an alias moves. Raises RefusedError with the reasons; then nothing has changed.
    """
    registry, log = Registry(tracking.connect(settings), model_name), places.folder / JOURNAL
    challenger, champion = registry.aliased(CHALLENGER), registry.aliased(CHAMPION)
    if challenger is None:
        raise InputError(f"models:/{model_name}@challenger", "there is no challenger", "run `holdfast train` first")
    journal.settle(log, champion and str(champion.version))
    itself = champion is not None and champion.tags.get(DIGEST) == challenger.tags.get(DIGEST)
    if champion is not None and itself and champion.tags.get(GATES) == "pass":
        return _earlier(places, champion)
    data = TrainingData.read(places.features)
    scorer = registry.load(str(challenger.version))
    told: dict[str, Any] = {
        "challenger": str(challenger.version),
        "model": scorer.model.name,
        "champion_before": champion and {"version": str(champion.version), "model": champion.tags.get(MODEL, "")},
    }
    rival = _before(registry, champion, journal.last_in_force(log)) if champion and itself else champion
    verdicts, against = _verdicts(registry, challenger, scorer, rival, data, floor)
    promoted = gates.passed(verdicts)
    told |= {"promoted": promoted, "against": against, "verdicts": [asdict(verdict) for verdict in verdicts]}
    _still(registry, champion)
    journal.append(log, journal.JUDGED, _entry(model_name, challenger, champion, data, told))
    if promoted:
        registry.note(str(challenger.version), {"holdfast.promoted_against": against, GATES: "pass"})
        registry.point(CHAMPION, str(challenger.version))
    write_json(_latest(places), told)
    if promoted:
        with suppress(InputError):  # it is in force all the same: the next promotion adds the line (`journal.settle`)
            journal.append(log, journal.IN_FORCE, {"version": str(challenger.version)})
    else:
        reasons = "\n  ".join(f"{v.gate}: {v.outcome}: {v.reason}" for v in verdicts if v.outcome != "pass")
        stays = f"champion v{champion.version} stays" if champion else "there is no champion"
        raise RefusedError(f"challenger v{challenger.version} ({told['model']}) refused, {stays}:\n  {reasons}", champion is not None)
    return told


def _before(registry: Registry, champion: ModelVersion, in_force: str | None) -> ModelVersion | None:
    """The last version in force, where the alias was moved to the challenger by hand: that is the one to beat."""
    return None if in_force in (None, str(champion.version)) else registry.version(str(in_force))


def _still(registry: Registry, champion: ModelVersion | None) -> None:
    """Refuse a judgement against a champion that is none any more: a registry may be shared by several machines."""
    now = registry.aliased(CHAMPION)
    if (now and now.version) != (champion and champion.version):
        here, there = (f"v{one.version}" if one else "none" for one in (champion, now))
        problem = f"was moved while the challenger was judged ({here}, now {there}); nothing was changed"
        raise InputError(f"models:/{registry.name}@champion", problem, "run `holdfast promote` again")


def _verdicts(
    registry: Registry, challenger: ModelVersion, scorer: Scorer, champion: ModelVersion | None, data: TrainingData, floor: Promotion
) -> tuple[list[Verdict], str]:
    """All verdicts, and what the challenger was judged against."""
    known = _trained_on(challenger, scorer, data)
    if known.outcome != "pass":
        return [known], "nothing"
    rows = data.at([data.split.test])
    judge = TrainConfig()  # never what the challenger's run chose
    test = Holdout(rows.y, data.split.test, floor, judge.bootstrap_draws, judge.seed)
    rivals, against = _rivals(registry, champion, data, rows)
    if isinstance(rivals, Verdict):
        return [known, rivals], against
    return [known, *gates.promotion(test, Judged("challenger", scorer.predict(rows), _learnt_until(scorer.manifest)), rivals)], against


def _trained_on(challenger: ModelVersion, scorer: Scorer, data: TrainingData) -> Verdict:
    """The challenger was trained and tested on the very table that is in force."""
    gate, next_step = "table", "train on the table in force: `holdfast train`"
    if TABLE not in challenger.tags:
        return Verdict(gate, "unknown", f"the challenger does not tell which table it was trained on (tag {TABLE}): {next_step}")
    if challenger.tags[TABLE] != data.fingerprint or scorer.manifest.fingerprint != data.manifest.fingerprint:
        theirs = f"{scorer.manifest.dataset} {challenger.tags[TABLE][:12]}"
        return Verdict(
            gate, "unknown", f"trained on {theirs}, the table in force is {data.manifest.dataset} {data.fingerprint[:12]}: {next_step}"
        )
    return Verdict(gate, "pass", f"trained on the table in force, {data.fingerprint[:12]}")


def _rivals(registry: Registry, champion: ModelVersion | None, data: TrainingData, test: Rows) -> tuple[list[Judged] | Verdict, str]:
    why = ""
    if champion is not None:
        name = f"champion v{champion.version}"
        scorer = _read(registry, champion, name)
        if scorer.manifest.dataset == data.manifest.dataset:
            return _champion(name, scorer, data), name
        why = f" ({name} knows another data set, {scorer.manifest.dataset})"
    known = data.split.before(data.split.test)[-1] + data.split.horizon
    return [Judged(name, model.predict(test), known) for name, model in fit.baselines(data).items()], "baselines" + why


def _read(registry: Registry, champion: ModelVersion, name: str) -> Scorer:
    try:
        return registry.load(str(champion.version))
    except NoAnswerError:
        raise
    except InputError as error:  # of an earlier version of Holdfast, or altered: training anew does not mend it
        raise InputError(name, f"cannot be judged against: {error.where}: {error.problem}", RETIRE) from error


def _champion(name: str, scorer: Scorer, data: TrainingData) -> list[Judged] | Verdict:
    """The champion's probabilities of the test rows, which it sees through its own score edges."""
    ours, theirs = data.manifest, scorer.manifest
    differ = [
        f"{word} ({getattr(theirs, word)}, here {getattr(ours, word)})" for word in SAME if getattr(ours, word) != getattr(theirs, word)
    ]
    rows = table.read(data.path, [data.split.test])
    lacking = sorted(set(theirs.names) - set(rows.column_names))
    if lacking:
        differ.append(f"features that are not there ({', '.join(lacking[:5])})")
    if scorer.model.reads_sequences and theirs.channels != ours.channels:
        differ.append("channels of the weekly sequences")
    if differ:
        return Verdict("rivals", "unknown", f"{name} cannot be judged here, it was trained with other {', '.join(differ)}; {RETIRE}")
    rows = theirs.fitted.reapply(rows) if theirs.fitted else rows
    p = scorer.predict(Rows.of(rows, theirs.names, theirs.channels))
    return [Judged(name, p, _learnt_until(theirs))]


def _learnt_until(manifest: Manifest) -> Any:
    """End of the last label window that a model of this manifest learnt from; None where it does not tell."""
    split = split_of(manifest)
    known = split.before(split.test) if split else ()
    return known[-1] + split.horizon if split and known else None


def _entry(
    model_name: str, challenger: ModelVersion, champion: ModelVersion | None, data: TrainingData, told: dict[str, Any]
) -> dict[str, Any]:
    return {
        "outcome": journal.PROMOTE if told["promoted"] else journal.REFUSE,
        "model_name": model_name,
        "challenger": {"version": told["challenger"], "model": told["model"], "digest": challenger.tags.get(DIGEST)},
        "champion_before": told["champion_before"] and {**told["champion_before"], "digest": champion and champion.tags.get(DIGEST)},
        "table": data.fingerprint,
        "data": data.manifest.data_fingerprint,
        "test": str(data.split.test),
        "against": told["against"],
        "verdicts": told["verdicts"],
    }


def _earlier(places: Places, champion: ModelVersion) -> dict[str, Any]:
    """The challenger is champion already: what was told when it became so."""
    earlier = read_json(_latest(places)) if _latest(places).exists() else {}
    if earlier.get("challenger") == str(champion.version) and earlier.get("promoted"):
        return dict(earlier)
    one = {"version": str(champion.version), "model": champion.tags.get(MODEL, "")}
    told = {"challenger": one["version"], "model": one["model"], "champion_before": one, "promoted": True}
    told |= {"against": "itself: it is champion already", "verdicts": []}
    write_json(_latest(places), told)
    return told


def _latest(places: Places) -> Path:
    return places.folder / "promotion.json"
