"""A feature table that Holdfast did not build: trained on by the same command, refused with column, value and fix when it is wrong."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import table
from features.errors import InputError
from features.settings import Settings
from tests.conftest import cli
from tests.training.ready_made import COLUMNS, MOMENTS, frame, learn, places
from training import tracking
from validation.external import accept, in_force
from validation.stages import Places

OPTIONS = ("--id-column", "user", "--snapshot-column", "day", "--label-column", "gone", "--horizon-days", "60")
Spoil = Callable[[pd.DataFrame], pd.DataFrame]


def test_a_teams_own_table_is_tuned_blended_registered_and_promoted(tmp_path: Path) -> None:
    given, file = frame(), str(tmp_path / "own.parquet")
    given.to_parquet(file)
    done = cli(tmp_path / "home", "train", "--dataset", file, *OPTIONS, "--trials", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 features at 13 labelled snapshots" in done.stdout
    assert "no features, as they are no numbers: plan" in done.stdout
    facts = json.loads(next((tmp_path / "home").rglob("training.json")).read_text())
    assert set(facts["test"]["models"]) == {"best_column", "lightgbm", "logistic", "blend"}
    assert facts["test"]["models"]["blend"]["auc"][0] > 0.8
    done = cli(tmp_path / "home", "promote", "--dataset", file, "--min-rows", "100")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "champion: version" in done.stdout
    tracking.connect(Settings(home=tmp_path / "home"))
    p = mlflow.pyfunc.load_model("models:/holdfast-churn-own@champion").predict(given)
    assert np.corrcoef(p, given["silence, days"])[0, 1] > 0.7


def test_what_is_promoted_is_what_was_trained_on(own: Path, tmp_path: Path) -> None:
    shutil.copy(own.parent / "own.parquet", tmp_path / "own.parquet")
    assert in_force(tmp_path / "own.parquet", places(own)).dataset == "own"
    frame(249).to_parquet(tmp_path / "own.parquet")
    with pytest.raises(InputError, match="has changed since it was trained on"):
        in_force(tmp_path / "own.parquet", places(own))
    with pytest.raises(InputError, match="no such file"):
        in_force(tmp_path / "other.parquet", places(own))
    with pytest.raises(InputError, match="nothing was trained on this table"):
        in_force(tmp_path / "own.parquet", Places(tmp_path / "state", tmp_path / "reports"))


def test_an_lstm_cannot_learn_from_a_table_without_sequences(tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "own.parquet")
    done = cli(tmp_path / "home", "train", "--dataset", str(tmp_path / "own.parquet"), *OPTIONS, "--model", "lstm")
    assert done.returncode == 2
    assert "no sequences to learn from" in done.stderr


def untidy() -> pd.DataFrame:
    """The same rows in other types: labels and moments as text, ids as floats, features of every numeric type, with gaps."""
    given = frame()
    rng = np.random.default_rng(3)
    return given.assign(
        user=given.user.str[1:].astype(float),
        day=given.day.dt.strftime("%Y-%m-%dT02:00:00+02:00"),
        gone=given.gone.map({1.0: "Yes", 0.0: "No"}),
        visits=given.visits.astype("int64"),
        few=given.visits.astype("Int32").where(rng.random(len(given)) < 0.8),
        vip=rng.random(len(given)) < 0.3,
        maybe=pd.Series(rng.random(len(given)) < 0.3, dtype="boolean").where(rng.random(len(given)) < 0.8),
        spend=[Decimal(int(cents)) / 100 for cents in rng.integers(0, 10_000, len(given))],
        small=given["silence, days"].astype("float32"),
    )


@pytest.fixture(scope="module")
def untidy_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("untidy") / "home"
    learn(home, untidy())
    return home


def test_untidy_types_mean_what_they_say(untidy_home: Path, tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "own.parquet")
    tidy = Places(tmp_path / "state", tmp_path / "reports")
    accept(tmp_path / "own.parquet", COLUMNS, tidy)
    one, other = (table.read(found.features).to_pandas() for found in (tidy, places(untidy_home)))
    both = one.assign(customer_id=one.customer_id.str[1:]).merge(other, on=["customer_id", "snapshot"], suffixes=("", "_untidy"))
    assert len(both) == len(one) == len(other)
    for name in ("churned", "visits", "silence, days"):
        assert np.array_equal(both[name], both[f"{name}_untidy"], equal_nan=True)
    assert {"few", "vip", "maybe", "spend", "small"} <= set(other.columns)
    assert other.few.isna().mean() == pytest.approx(0.2, abs=0.03)
    assert set(other.vip) == {0.0, 1.0}


def test_pyfunc_predicts_on_the_very_table_that_was_trained_on(untidy_home: Path) -> None:
    """Of integers, bools, decimals and gaps; and the same as on the doubles in force."""
    tracking.connect(Settings(home=untidy_home))
    model = mlflow.pyfunc.load_model("models:/holdfast-churn-own@challenger")
    given, doubles = pd.read_parquet(untidy_home.parent / "own.parquet"), table.read(places(untidy_home).features).to_pandas()
    assert {str(kind) for kind in given.dtypes} >= {"int64", "Int32", "bool", "boolean", "float32", "object"}
    p = np.asarray(model.predict(given.sort_values(["day", "user"], key=lambda one: one.astype(str), kind="stable")))
    expected = np.asarray(model.predict(doubles.drop(columns="snapshot")))
    assert np.allclose(p, expected, atol=1e-12)
    with pytest.raises(mlflow.exceptions.MlflowException, match=r"missing inputs \['visits'\]"):
        model.predict(given.drop(columns="visits"))


NOW = datetime.now(UTC).replace(tzinfo=None, microsecond=0)


def with_day(rule: Callable[[datetime], object]) -> Spoil:
    return lambda f: f.assign(day=f.day.map(rule))


WRONG: list[tuple[Spoil, str]] = [
    (lambda f: f.rename(columns={"gone": "lost"}), "column 'gone': is not there"),
    (lambda f: f.assign(gone=f.gone * 2), r"column 'gone': [0-9,]+ values are neither 0 nor 1"),
    (lambda f: f.assign(gone=f.gone.map({1.0: "gone@example.org", 0.0: "No"})), r"2 different texts are no label"),
    (lambda f: f.assign(gone=f.gone.map({1.0: "Yes", 0.0: "false"})), "2 different texts are no label"),
    (lambda f: pd.concat([f, f.head(3)]), "3 rows repeat a user"),
    (lambda f: pd.concat([f, f.head(3).assign(user=f.user + " ")]), "3 rows repeat a user"),
    (lambda f: f.assign(visits=np.inf), "column 'visits' holds 2,100 infinite values"),
    (lambda f: f.assign(visits=np.nan), "column 'visits' is null everywhere"),
    (lambda f: f[f.day < MOMENTS[4]], r"too few for a horizon of 60 days"),
    (lambda f: f.drop(columns=["silence, days", "visits"]), "no numeric column"),
    (lambda f: f.assign(gone=np.nan), "holds no label"),
    (lambda f: f.assign(user=None), "lack user or day"),
    (lambda f: f.assign(user=[b"\xff"] * len(f)), "column 'user': holds bytes that are no UTF-8 text"),
    (lambda f: f.assign(user=2.0**53 + 2 * np.arange(len(f))), r"2,100 ids are floats beyond 2\^53"),
    (lambda f: f.assign(user=f.visits > 3), "column 'user': is bool, no id"),
    (with_day(lambda day: day.strftime("%d/%m/%Y")), "texts of the form '99/99/9999' are no moments"),
    (with_day(lambda day: day.strftime("%b %d %Y")), "texts of the form 'aaa 99 9999' are no moments"),
    (with_day(lambda day: int(day.strftime("%Y%m%d"))), "column 'day': is int64, no moment"),
    (with_day(lambda day: day.isoformat() + ("Z" if day == MOMENTS[3] else "")), "some moments have an offset and some have none"),
    (with_day(lambda day: "" if day == MOMENTS[3] else day.isoformat()), "150 rows lack user or day"),
    (lambda f: f.assign(customer_id=np.arange(len(f))), "column 'customer_id': is a name of Holdfast's own"),
    (lambda f: f.assign(Snapshot="x"), "column 'Snapshot': is a name of Holdfast's own"),
    (lambda f: f.assign(churned=1 - f.gone), "column 'churned': is a name of Holdfast's own"),
    (lambda f: f.assign(next_order_days=f.gone * 9), "column 'next_order_days': is a name of Holdfast's own"),
    (lambda f: f.assign(Visits=999), "column 'Visits': differs from 'visits' by case at most"),
    (lambda f: f.assign(**{" ": 1}), "column ' ': is no name"),
    (lambda f: f.assign(**{"a{b}": 1}), "is no name"),
    (lambda f: f.assign(gone=f.gone.where(f.user != "u7")), r"2024-01-01: 1 of 150 rows have no label"),
    (lambda f: f.assign(gone=f.gone.where(f.day != MOMENTS[3], 1)), r"2024-03-31: everybody of 150 churned"),
    (lambda f: f.assign(day=f.day.where(f.day != MOMENTS[-1], datetime(2999, 1, 1))), "2999-01-01: this snapshot lies in the future"),
    (lambda f: f.assign(day=f.day + (NOW - timedelta(days=50) - MOMENTS[-2])), "label window of 60 days has not ended"),
    (lambda f: f.head(0), "has no rows"),
]


@pytest.mark.parametrize(("spoil", "told"), WRONG)
def test_a_wrong_table_is_refused_and_the_one_in_force_stays_whole(own: Path, tmp_path: Path, spoil: Spoil, told: str) -> None:
    before = places(own).features.read_bytes(), places(own).contract("features").read_bytes()
    spoil(frame()).to_parquet(tmp_path / "own.parquet")
    with pytest.raises(InputError, match=told) as found:
        accept(tmp_path / "own.parquet", COLUMNS, places(own))
    assert "\n  fix: " in str(found.value)
    assert "example.org" not in str(found.value)
    assert (places(own).features.read_bytes(), places(own).contract("features").read_bytes()) == before


def accepted(folder: Path, given: pa.Table | pd.DataFrame, name: str = "own.parquet") -> pd.DataFrame:
    """The table in force after accepting another."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(given if isinstance(given, pa.Table) else pa.Table.from_pandas(given), folder / name)
    found = Places(folder / "state", folder / "reports")
    accept(folder / name, COLUMNS, found)
    return table.read(found.features).to_pandas()


NUMBERED = frame().assign(user=frame().user.str[1:].astype(int))
EAST = timezone(timedelta(hours=5))
DAYS: list[Spoil] = [
    lambda f: f,
    with_day(lambda day: day.date().isoformat()),
    with_day(lambda day: day.strftime("%Y%m%d")),
    with_day(lambda day: f" {day.isoformat()}Z "),
    with_day(lambda day: day.replace(tzinfo=UTC).astimezone(EAST).isoformat()),
    with_day(lambda day: day.replace(tzinfo=UTC).astimezone(EAST)),
    with_day(lambda day: date(day.year, day.month, day.day)),
    lambda f: f.assign(day=f.day.astype("datetime64[ns]")),
    lambda f: f.assign(day=f.day.dt.strftime("%Y-%m-%d").astype("category")),
]
IDS: list[Spoil] = [
    lambda f: f.assign(user=f.user.astype(float)),
    lambda f: f.assign(user=f.user.astype(str) + ".0"),
    lambda f: f.assign(user=" " + f.user.astype(str) + "\u00a0"),
    lambda f: f.assign(user=f.user.map(lambda one: Decimal(one).quantize(Decimal("0.0001")))),
    lambda f: f.assign(user=f.user.astype(str).astype("category")),
    lambda f: f.assign(user=f.user.astype(str).str.encode("utf-8")),
    lambda f: f.assign(user=f.user.astype("uint8")),
]
PAIRS = [("Yes", "No"), ("TRUE", "FALSE"), (" y", "n"), ("1", "0"), ("1.0", "0.0"), ("churned", "Active"), (True, False)]
LABELS: list[Spoil] = [lambda f, pair=pair: f.assign(gone=f.gone.map({1.0: pair[0], 0.0: pair[1]})) for pair in PAIRS]  # type: ignore[misc]
LABELS += [lambda f: f.assign(gone=f.gone.astype("Int8")), lambda f: f.assign(gone=f.gone.map({1.0: "t", 0.0: "f"}).fillna(""))]


@pytest.fixture(scope="module")
def plainly(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return accepted(tmp_path_factory.mktemp("plainly"), NUMBERED)


@pytest.mark.parametrize("written", [*DAYS, *IDS, *LABELS])
def test_a_table_written_another_way_means_the_same(
    plainly: pd.DataFrame, tmp_path: Path, written: Spoil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    pd.testing.assert_frame_equal(accepted(tmp_path, written(NUMBERED)), plainly)


def test_nan_is_not_known_as_null_is(plainly: pd.DataFrame, tmp_path: Path) -> None:
    given = pa.Table.from_pandas(NUMBERED)
    labels = pa.array(NUMBERED.gone.to_numpy(), pa.float64())  # NaN, where from_pandas writes null
    pd.testing.assert_frame_equal(accepted(tmp_path, given.set_column(2, "gone", labels)), plainly)


@pytest.mark.parametrize("folder", ["Bob's", "100%", "#1", "a[b]*?", "day=2024-01-01", "größe"])
def test_a_folder_may_have_any_name(plainly: pd.DataFrame, tmp_path: Path, folder: str) -> None:
    pd.testing.assert_frame_equal(accepted(tmp_path / folder, NUMBERED), plainly)


def test_columns_may_have_quotes_dots_and_twins_that_are_no_features(plainly: pd.DataFrame, tmp_path: Path) -> None:
    odd = {"silence, days": 'silence "in" days', "visits": "visits.a'b;--"}
    given = pa.Table.from_pandas(NUMBERED.rename(columns=odd).assign(visits="text"))
    given = given.append_column("Plan", pa.array(["x"] * len(given))).append_column("GONE", pa.array(["x"] * len(given)))
    found = accepted(tmp_path, given.append_column("GONE", pa.array(["y"] * len(given))))
    pd.testing.assert_frame_equal(found.rename(columns={new: old for old, new in odd.items()}), plainly)


def test_names_written_alike_do_not_share_a_place(own: Path, tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "Own.parquet")
    with pytest.raises(InputError, match="its name is written like that of 'own'"):
        accept(tmp_path / "Own.parquet", COLUMNS, places(own))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"id,snapshot\n1,2\n"])
def test_a_file_that_is_no_parquet_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "own.parquet").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        accept(tmp_path / "own.parquet", COLUMNS, Places(tmp_path / "state", tmp_path / "reports"))
