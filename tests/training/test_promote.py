"""What goes into force: judged on the table that the challenger was trained on, by baselines made anew, and on record before it happens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import InputError, RefusedError
from features.mapping import Promotion
from features.settings import Settings
from tests.conftest import Shop
from tests.training.ready_made import COLUMNS, MODEL, MOMENTS, copy, frame, learn, places
from tests.training.test_registry import locked, registry_of
from training import journal
from training.promote import JOURNAL, promote
from training.registry import CHALLENGER, CHAMPION, TABLE, Registry
from validation import gates
from validation.external import accept


def promoted(home: Path, **floor: int) -> dict[str, object]:
    return promote(MODEL, places(home), Settings(home=home), Promotion(**floor))


def champion(home: Path) -> str | None:
    found = registry_of(home).aliased(CHAMPION)
    return found and str(found.version)


def log(home: Path) -> list[dict[str, object]]:
    return journal.entries(places(home).folder / JOURNAL)


@pytest.fixture(scope="session")
def reigning(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home after its challenger has become champion; treat it as read-only."""
    home = copy(own, tmp_path_factory.mktemp("reigning"))
    promoted(home)
    return home


def worse(home: Path, days: int = 0) -> None:
    """A challenger that learnt from labels of which every fourth is wrong; the table ends ``days`` earlier."""
    given = frame(250)
    given = given[given.day < MOMENTS[-1 - days // 30]]
    wrong = (np.random.default_rng(2).random(len(given)) < 0.25) & (given.day < given.day.max())
    learn(home, given.assign(gone=np.where(wrong, 1 - given.gone, given.gone)))


def test_a_ready_made_tables_challenger_becomes_champion_against_its_best_column(reigning: Path) -> None:
    told = json.loads((places(reigning).folder / "promotion.json").read_text())
    assert champion(reigning) == "1"
    assert told["against"] == "baselines"
    gates = {verdict["gate"]: verdict["outcome"] for verdict in told["verdicts"]}
    rivals = ["log_loss<best_column", "auc>=best_column"]
    assert gates == dict.fromkeys(["table", "sound", "enough", "unseen", "auc>0.5", *rivals], "pass")
    assert registry_of(reigning).aliased(CHAMPION).tags["holdfast.gates"] == "pass"


def test_the_record_tells_who_when_what_and_why_and_only_grows(reigning: Path, tmp_path: Path) -> None:
    home = copy(reigning, tmp_path)
    judged, in_force = log(home)
    assert (judged["event"], judged["outcome"], judged["champion_before"]) == ("judged", "promote", None)
    assert judged["challenger"]["digest"] == registry_of(home).aliased(CHAMPION).tags["holdfast.digest"]
    assert len(judged["table"]) == 64
    assert judged["when"].endswith("+00:00")
    assert judged["who"]
    assert len(judged["verdicts"]) == 7
    assert (in_force["event"], in_force["version"]) == ("in force", "1")
    worse(home)
    with pytest.raises(RefusedError, match="champion v1 stays"):
        promoted(home)
    assert log(home)[:2] == [judged, in_force]
    assert (log(home)[2]["outcome"], log(home)[2]["champion_before"]["version"]) == ("refuse", "1")
    assert len(log(home)) == 3


def test_a_second_promotion_changes_nothing(reigning: Path, tmp_path: Path) -> None:
    home = copy(reigning, tmp_path)
    before = log(home)
    assert promoted(home)["challenger"] == "1"
    assert log(home) == before


def test_an_alias_moved_by_hand_is_judged_before_it_counts(own: Path, tmp_path: Path) -> None:
    home = copy(own, tmp_path)
    registry_of(home).point(CHAMPION, "1")
    with pytest.raises(RefusedError, match="enough: unknown"):
        promoted(home, min_rows=1000)
    assert promoted(home)["against"] == "baselines"
    assert registry_of(home).aliased(CHAMPION).tags["holdfast.gates"] == "pass"


def test_an_alias_moved_past_the_champion_by_hand_leaves_the_champion_to_be_beaten(reigning: Path, tmp_path: Path) -> None:
    home = copy(reigning, tmp_path)
    worse(home)
    challenger = str(registry_of(home).aliased(CHALLENGER).version)
    registry_of(home).point(CHAMPION, challenger)
    with pytest.raises(RefusedError):
        promoted(home)
    assert log(home)[-1]["against"] == "champion v1"


def test_the_same_model_registered_twice_leaves_the_champion_in_force(reigning: Path, tmp_path: Path) -> None:
    home = copy(reigning, tmp_path)
    registry = registry_of(home)
    first = registry.aliased(CHAMPION)
    again = registry.client.create_model_version(MODEL, first.source, run_id=first.run_id, tags=first.tags)
    registry.point(CHALLENGER, str(again.version))
    assert promoted(home)["challenger"] == "1"
    assert champion(home) == "1"


@pytest.mark.parametrize("spoil", ["gone", "foreign"])
def test_a_champion_whose_files_cannot_be_read_blocks_with_the_way_out(reigning: Path, tmp_path: Path, spoil: str) -> None:
    home = copy(reigning, tmp_path)
    worse(home)
    registry = registry_of(home)
    if spoil == "foreign":
        registry.point(CHAMPION, str(registry.client.create_model_version(MODEL, str(tmp_path / "elsewhere")).version))
    else:
        name = registry.aliased(CHAMPION).source.rsplit("/", 1)[-1]
        shutil.rmtree(next((home / "mlartifacts").rglob(f"models/{name}/artifacts")))
    with pytest.raises(
        InputError, match=r"champion v[13]: cannot be judged against.*holds 0 saved models(.|\n)*delete the alias `champion`"
    ):
        promoted(home)
    assert champion(home) == ("3" if spoil == "foreign" else "1")


def test_a_champion_that_changed_while_the_challenger_was_judged_stays(
    reigning: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = copy(reigning, tmp_path)
    learn(home, frame(260))
    judge = gates.promotion

    def meanwhile(*given: object) -> object:
        registry_of(home).client.delete_registered_model_alias(MODEL, CHAMPION)
        return judge(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(gates, "promotion", meanwhile)
    with pytest.raises(InputError, match=r"was moved while the challenger was judged \(v1, now none\)"):
        promoted(home)
    assert champion(home) is None
    assert len(log(home)) == 2


def test_a_refused_challenger_is_not_promoted_while_the_registry_gives_no_answer(reigning: Path, tmp_path: Path) -> None:
    home = copy(reigning, tmp_path)
    worse(home)
    registry_of(home)
    with locked(home / "mlflow.db"), pytest.raises(InputError, match="database is locked"):
        promoted(home)
    assert champion(home) == "1"
    assert len(log(home)) == 2


def test_a_challenger_of_another_table_is_refused_with_the_next_step(own: Path, tmp_path: Path) -> None:
    home = copy(own, tmp_path)
    frame(260).to_parquet(tmp_path / "own.parquet")
    accept(tmp_path / "own.parquet", COLUMNS, places(home))
    with pytest.raises(RefusedError, match=r"table: unknown: trained on own .*`holdfast train`"):
        promoted(home)
    assert champion(home) is None


@pytest.mark.parametrize("spoil", ["tag", "no tag"])
def test_a_challenger_that_tells_no_or_another_table_is_refused(own: Path, tmp_path: Path, spoil: str) -> None:
    home = copy(own, tmp_path)
    registry = registry_of(home)
    if spoil == "tag":
        registry.note("1", {TABLE: "0" * 64})
    else:
        registry.client.delete_model_version_tag(MODEL, "1", TABLE)
    with pytest.raises(RefusedError, match="table: unknown"):
        promoted(home)


def test_training_again_mends_a_version_that_does_not_tell_its_table(own: Path, tmp_path: Path) -> None:
    """As those that an earlier Holdfast registered."""
    home = copy(own, tmp_path)
    registry_of(home).client.delete_model_version_tag(MODEL, "1", TABLE)
    learn(home, frame(250))
    assert promoted(home)["promoted"]


def test_training_again_names_the_challenger_again(own: Path, tmp_path: Path) -> None:
    home = copy(own, tmp_path)
    registry_of(home).client.delete_registered_model_alias(MODEL, CHALLENGER)
    learn(home, frame(250))
    assert str(registry_of(home).aliased(CHALLENGER).version) == "1"


def test_local_files_decide_nothing(own: Path, tmp_path: Path, reigning: Path) -> None:
    """Saved test predictions and the run's own facts are not read: baselines are made anew, seed and draws are ours."""
    home = copy(own, tmp_path)
    folder = places(home).folder
    rows = pq.read_table(folder / "test_predictions.parquet")
    hopeless = pa.table({name: rows[name] if name == "y" else np.full(len(rows), 0.001) for name in rows.column_names})
    pq.write_table(hopeless, folder / "test_predictions.parquet")
    (folder / "training.json").unlink()
    assert promoted(home)["verdicts"] == log(reigning)[0]["verdicts"]


def test_a_champion_that_learnt_from_the_test_period_blocks(reigning: Path, tmp_path: Path) -> None:
    home = copy(reigning, tmp_path)
    worse(home, days=90)
    with pytest.raises(RefusedError, match=r"unseen: unknown: champion v1 learnt from labels up to 2024-\d\d-\d\d"):
        promoted(home)


@pytest.mark.parametrize(
    ("names", "horizon_days", "differs"), [({"silence, days": "silence"}, 60, "silence, days"), ({}, 30, "horizon_days")]
)
def test_a_champion_that_cannot_be_judged_on_the_table_blocks(
    reigning: Path, tmp_path: Path, names: dict[str, str], horizon_days: int, differs: str
) -> None:
    home = copy(reigning, tmp_path)
    learn(home, frame(250).rename(columns=names), horizon_days)
    with pytest.raises(RefusedError, match=rf"rivals: unknown: champion v1 cannot be judged here.*{differs}.*delete the alias `champion`"):
        promoted(home)


def test_a_small_table_is_refused_unless_the_shop_sets_its_own_floor(own: Path, tmp_path: Path) -> None:
    home = copy(own, tmp_path)
    learn(home, frame(150))
    with pytest.raises(RefusedError, match=r"enough: unknown: 150 test rows.*asked are 200 and 30"):
        promoted(home)
    told = promoted(home, min_rows=100)
    assert told["promoted"]
    assert any("luck may decide" in verdict["reason"] for verdict in told["verdicts"])


def killed(*args: object) -> None:
    raise KeyboardInterrupt  # nothing of ours handles it: what is on the disk is what a kill leaves


def moved_then_killed(point: Callable[..., None]) -> Callable[..., None]:
    def then_killed(*args: object) -> None:
        point(*args)
        raise KeyboardInterrupt

    return then_killed


@pytest.mark.parametrize("moved", [False, True])
def test_a_kill_between_record_and_alias_is_told_by_the_record(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    home = copy(own, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Registry, "point", moved_then_killed(Registry.point) if moved else killed)
        with pytest.raises(KeyboardInterrupt):
            promoted(home)
    assert [(entry["event"], entry.get("outcome")) for entry in log(home)] == [("judged", "promote")]
    assert champion(home) == ("1" if moved else None)
    promoted(home)
    rest = ["in force"] if moved else ["not in force", "judged", "in force"]
    assert [entry["event"] for entry in log(home)] == ["judged", *rest]
    assert champion(home) == "1"


def test_a_line_torn_by_a_kill_is_left_out_and_the_next_is_whole(tmp_path: Path) -> None:
    file = tmp_path / JOURNAL
    journal.append(file, "judged", {"outcome": "refuse"})
    with file.open("a") as lines:
        lines.write('{"when": "2026-')
    journal.append(file, "judged", {"outcome": "promote"})
    assert [entry["outcome"] for entry in journal.entries(file)] == ["refuse", "promote"]


def test_nothing_is_put_in_force_that_cannot_be_recorded(own: Path, tmp_path: Path) -> None:
    home = copy(own, tmp_path)
    (places(home).folder / JOURNAL).mkdir()
    with pytest.raises(InputError, match=r"promotions\.jsonl: cannot be read or written"):
        promoted(home)
    assert champion(home) is None


def test_the_champion_of_a_shop_is_judged_with_its_own_score_edges(fake_run: Shop, tmp_path: Path) -> None:
    """The table of a later data delivery has other edges; the champion's are in its manifest."""
    from training.dataset import TrainingData
    from training.promote import _champion

    data = TrainingData.read(fake_run.places.features)
    registry = Registry(registry_of(fake_run.home).client, "holdfast-churn")
    scorer = registry.load(str(registry.aliased(CHAMPION).version))
    shutil.copy(data.path, tmp_path / "features.parquet")
    rows = pq.read_table(data.path)
    spoilt = rows.set_column(rows.column_names.index("rfm_score"), "rfm_score", pa.array(np.zeros(len(rows))))
    pq.write_table(spoilt, tmp_path / "features.parquet")
    [judged] = _champion("champion", scorer, TrainingData.read(tmp_path / "features.parquet"))
    assert np.array_equal(judged.p, scorer.predict(data.at([data.split.test])))
    assert pd.Timestamp(judged.learnt_until) <= pd.Timestamp(data.split.test)
