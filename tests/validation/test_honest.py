"""What keeps a run honest holds under `python -O` too, which takes every `assert` out."""

import ast
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest

from features.errors import ContractError, InputError
from features.table import Manifest, store_manifest
from tests.conftest import ROOT
from training.config import MEMBERS, ModelChoice
from training.dataset import TrainingData
from validation import contracts


def narrows(test: ast.expr) -> bool:
    """Whether a condition only tells mypy the type of something."""
    if isinstance(test, ast.Call):
        return isinstance(test.func, ast.Name) and test.func.id == "isinstance"
    return isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.IsNot)


def test_an_assert_only_narrows_a_type() -> None:
    files = [file for folder in ("features", "validation", "training") for file in (ROOT / folder).rglob("*.py")]
    parsed = [(file.relative_to(ROOT), node) for file in files for node in ast.walk(ast.parse(file.read_text()))]
    assert [f"{file}:{node.lineno}" for file, node in parsed if isinstance(node, ast.Assert) and not narrows(node.test)] == []


@pytest.mark.parametrize("suites", [{}, {"rules": []}])
def test_a_suite_without_rules_is_refused(tmp_path: Path, suites: dict[str, list[object]]) -> None:
    with pytest.raises(ContractError, match="would pass whatever the data are"):
        contracts._run({name: pd.DataFrame({"x": [1]}) for name in suites}, suites, tmp_path / "docs")


def test_a_table_of_one_day_is_no_training_table(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    manifest = Manifest("own", "UTC", "XXX", 90, 365.0, 0.0, (), "0" * 16, columns=("visits",))
    pq.write_table(store_manifest(pa.table({"visits": [1.0]}), manifest), tmp_path / "day.parquet")
    with pytest.raises(InputError, match="has no labelled snapshots"):
        TrainingData.read(tmp_path / "day.parquet")


def test_every_member_may_be_chosen() -> None:
    assert set(get_args(ModelChoice)) == {"blend", *MEMBERS}
