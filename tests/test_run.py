"""The whole path on the fake shop: what `holdfast run` leaves behind, through the CLI and through MLflow."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

from features import table
from features.cli import commands, stage_of
from features.settings import Settings
from tests.conftest import HOLDFAST, ROOT, Shop, clean_environment, cli
from training import tracking

MODELS = ["recency", "logistic_rfm", "bgnbd", "logistic", "lightgbm", "lstm", "blend"]
REGISTERED = {"lightgbm", "lstm", "blend"}
METRICS = {"auc", "pr_auc", "log_loss", "brier", "ece", "accuracy", "lift_10"}


@pytest.fixture(scope="module")
def facts(fake_run: Shop) -> dict[str, object]:
    return json.loads((fake_run.home / "reports/run.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def client(fake_run: Shop) -> MlflowClient:
    return tracking.connect(Settings(home=fake_run.home))


def test_run_json_has_every_model_with_intervals_on_the_same_rows(facts: dict) -> None:
    assert list(facts["test"]["models"]) == MODELS
    for metrics in facts["test"]["models"].values():
        assert set(metrics) == METRICS
        assert all(low <= high for _, low, high in metrics.values())
    assert facts["champion"]["model"] in MODELS
    assert facts["peak_memory_mb"] > 100


def test_the_champion_beat_every_baseline_in_log_loss(facts: dict) -> None:
    models = facts["test"]["models"]
    assert all(models[facts["champion"]["model"]]["log_loss"][0] < models[name]["log_loss"][0] for name in MODELS[:3])


def test_the_report_shows_models_promotion_and_answers(fake_run: Shop) -> None:
    page = (fake_run.home / "reports/report.html").read_text()
    assert all(part in page for part in [*MODELS, "became champion", "leaving", "loyal", "data:image/png", "assumed"])
    assert "http://" not in page.replace("http://127.0.0.1", "")


def test_each_study_has_a_parent_run_with_a_nested_run_for_each_trial(client: MlflowClient) -> None:
    experiment = client.get_experiment_by_name("holdfast").experiment_id
    runs = client.search_runs([experiment])
    parents = {run.info.run_id: run.data.tags["mlflow.runName"] for run in runs if "holdfast.fingerprint" in run.data.tags}
    nested = [parents[run.data.tags["mlflow.parentRunId"]] for run in runs if "holdfast.trial" in run.data.tags]
    assert sorted(parents.values()) == ["blend", "lightgbm", "logistic", "lstm"]
    assert [nested.count(name) for name in ("lightgbm", "lstm", "logistic")] == [3, 2, 2]
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_a_parent_run_holds_what_the_model_rests_on(client: MlflowClient) -> None:
    version = client.get_model_version_by_alias("holdfast-churn", "champion")
    run = client.get_run(version.run_id)
    assert {"holdfast.data", "holdfast.git", "holdfast.dataset"} <= set(run.data.tags)
    assert "run.seed" in run.data.params
    assert {f"test_{metric}" for metric in METRICS} <= set(run.data.metrics)
    plots = {Path(file.path).stem for file in client.list_artifacts(version.run_id, "plots")}
    assert {"precision_recall", "calibration", "lift"} <= plots
    files = {Path(file.path).name for file in client.list_artifacts(version.run_id, "run")}
    assert {"manifest.json", "contract_sources.json", "contract_features.json"} <= files
    assert {file.path for file in client.list_artifacts(version.run_id, "data_docs")} == {"data_docs/sources", "data_docs/features"}


def test_all_candidates_are_registered_under_one_name(client: MlflowClient) -> None:
    versions = client.search_model_versions("name = 'holdfast-churn'")
    assert {version.tags["holdfast.model"] for version in versions} == REGISTERED


def test_no_artefact_is_a_pickle(fake_run: Shop) -> None:
    suspicious = {".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin"}
    assert [file for file in fake_run.home.rglob("*") if file.suffix in suspicious] == []


@pytest.mark.parametrize("alias", ["champion", "1", "2", "3"])
def test_pyfunc_predicts_from_a_feature_table_frame(client: MlflowClient, fake_run: Shop, alias: str) -> None:
    manifest = table.read_manifest(fake_run.places.features)
    frame = table.read(fake_run.places.features, [manifest.test]).to_pandas()
    uri = f"models:/holdfast-churn@{alias}" if alias == "champion" else f"models:/holdfast-churn/{alias}"
    model = mlflow.pyfunc.load_model(uri)
    p = np.asarray(model.predict(frame))
    assert model.metadata.signature is not None
    assert p.shape == (len(frame),)
    name = json.loads((fake_run.home / "reports/run.json").read_text())["champion"]["model"]
    if alias == "champion":
        import pyarrow.parquet as pq

        tested = pq.read_table(fake_run.places.folder / "test_predictions.parquet")[name].to_numpy()
        assert np.allclose(p, tested, atol=1e-12)


def test_mlflow_evaluates_the_champion_to_its_brier_score(fake_run: Shop, facts: dict, tmp_path: Path) -> None:
    """Probabilities are numbers to MLflow: their mean squared error is the Brier score. In a copy, as MLflow writes a run."""
    shutil.copytree(fake_run.home, tmp_path / "home")
    tracking.connect(Settings(home=tmp_path / "home"))
    manifest = table.read_manifest(fake_run.places.features)
    frame = table.read(fake_run.places.features, [manifest.test]).to_pandas()
    columns = [one.name for one in mlflow.pyfunc.load_model("models:/holdfast-churn@champion").metadata.signature.inputs.inputs]
    found = mlflow.models.evaluate(
        "models:/holdfast-churn@champion", frame[[*columns, "churned"]], targets="churned", model_type="regressor"
    )
    brier = facts["test"]["models"][facts["champion"]["model"]]["brier"][0]
    assert found.metrics["mean_squared_error"] == pytest.approx(brier, abs=1e-9)


def test_runs_know_their_data_by_digest_and_how_the_machine_fared(client: MlflowClient, fake_run: Shop) -> None:
    run = client.get_run(client.get_model_version_by_alias("holdfast-churn", "champion").run_id)
    contexts = {tag.value for one in run.inputs.dataset_inputs for tag in one.tags}
    assert {one.dataset.name for one in run.inputs.dataset_inputs} == {"fake_shop"}
    assert contexts == {"training", "testing"}
    assert {"holdfast.family", "holdfast.protocol"} <= set(run.data.tags)
    assert "estimated_auc" in run.data.metrics


def state(home: Path) -> dict[str, object]:
    """What a run ends in: digests, versions, aliases, trials, test results."""
    training = json.loads(next(home.rglob("training.json")).read_text())
    promotion = json.loads(next(home.rglob("promotion.json")).read_text())
    with sqlite3.connect(home / "mlflow.db") as db:
        versions = db.execute("SELECT version FROM model_versions ORDER BY version").fetchall()
        aliases = db.execute("SELECT alias, version FROM registered_model_aliases ORDER BY alias").fetchall()
        active = "SELECT status, count(*) FROM runs WHERE lifecycle_stage = 'active' GROUP BY status"
        runs = db.execute(active).fetchall()
    digests = {name: version["digest"] for name, version in training["versions"].items()}
    left = [file.name for file in home.rglob("*.tmp")]
    return {
        "digests": digests,
        "versions": versions,
        "aliases": aliases,
        "runs": runs,
        "test": training["test"],
        "promoted": promotion["promoted"],
        "left": left,
    }


def test_a_second_run_learns_nothing_new_and_changes_nothing(fake_run: Shop, tmp_path: Path) -> None:
    before = state(fake_run.home)
    done = cli(fake_run.home, "run", "--dataset", str(fake_run.mapping), "--trials", "3")
    assert done.returncode == 0, done.stderr
    assert "nothing new to learn" in done.stdout
    assert state(fake_run.home) == before


KILL_AT = [
    "validating",
    "building the feature table",
    "lightgbm: trial 1",
    "lstm: trial 1",
    "registering lstm",
    "challenger",
    "packaging",
    "starting",
]


@pytest.mark.slow  # the kills of a feature run and of a study are in the shorter tests
@pytest.mark.parametrize("line", KILL_AT)
def test_a_run_killed_at_any_stage_ends_in_the_same_state(fake_run: Shop, tmp_path: Path, line: str) -> None:
    home = tmp_path / "home"
    command = [HOLDFAST, "run", "--dataset", str(fake_run.mapping), "--trials", "3"]
    environment = {**clean_environment(home), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True
    )
    assert process.stdout is not None
    for told in process.stdout:
        if line in told:
            break
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = cli(home, "run", "--dataset", str(fake_run.mapping), "--trials", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert state(home) == state(fake_run.home)


def mlflow_run(entry: str, home: Path, **parameters: str) -> subprocess.CompletedProcess[str]:
    given = [word for name, value in parameters.items() for word in ("-P", f"{name}={value}")]
    environment = {**clean_environment(home), "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}"}
    command = [str(Path(HOLDFAST).with_name("mlflow")), "run", str(ROOT), "-e", entry, "--env-manager=local", *given]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, cwd=home)


def test_mlflow_run_trains(fake_run: Shop, tmp_path: Path) -> None:
    shutil.copytree(fake_run.home, tmp_path / "home")
    done = mlflow_run("train", tmp_path / "home", dataset=str(fake_run.mapping), trials="3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing new to learn" in done.stdout + done.stderr


@pytest.mark.slow
def test_mlflow_run_goes_the_whole_path(fake_files: Path, tmp_path: Path) -> None:
    done = mlflow_run("main", tmp_path, dataset=str(fake_files), trials="2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "reports/run.json").read_text())["dataset"] == "fake_shop"


def test_mlproject_entry_points_are_the_clis_commands_with_its_defaults() -> None:
    import inspect

    project = yaml.safe_load((ROOT / "MLproject").read_text())
    assert set(project["entry_points"]) == {"main", "validate", "features", "train", "promote", "package", "score"}
    for name, entry in project["entry_points"].items():
        command = "run" if name == "main" else name
        assert entry["command"].startswith(f"holdfast {command} ")
        defaults = {key: str(value.default) for key, value in inspect.signature(stage_of(commands()[command])).parameters.items()}
        for key, value in entry["parameters"].items():
            assert str(value["default"]) == defaults[key]


def test_promotion_without_a_better_challenger_is_refused_and_changes_nothing(fake_run: Shop, tmp_path: Path) -> None:
    """Another version loses to the champion: alias moved by hand to it, then `holdfast promote`."""
    home = tmp_path / "home"
    shutil.copytree(fake_run.home, home)
    uri = f"sqlite:///{home / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    champion = client.get_model_version_by_alias("holdfast-churn", "champion")
    other = next(v for v in client.search_model_versions("name = 'holdfast-churn'") if v.version != champion.version)
    client.set_registered_model_alias("holdfast-churn", "challenger", other.version)
    done = cli(home, "promote", "--dataset", str(fake_run.mapping))
    assert done.returncode == 3
    assert f"champion v{champion.version} stays" in done.stderr
    assert "log loss" in done.stderr
    assert client.get_model_version_by_alias("holdfast-churn", "champion").version == champion.version


def test_packaging_without_a_champion_is_refused(tmp_path: Path) -> None:
    done = cli(tmp_path, "package")
    assert done.returncode == 3
    assert "train and promote first" in done.stderr


def test_two_runs_at_once_in_one_home_are_refused(fake_files: Path, tmp_path: Path) -> None:
    from features.files import locked

    with locked(tmp_path):
        done = cli(tmp_path, "validate", "--dataset", str(fake_files))
    assert done.returncode == 2
    assert "another Holdfast run" in done.stderr
