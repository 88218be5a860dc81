"""AutoGluon on a feature table of `holdfast benchmark`, by hand, in an environment of its own: it is no dependency.

pip install torch==2.13.0 'autogluon.tabular[lightgbm,catboost,xgboost,fastai]==1.6.3'; pip uninstall -y torchvision
OMP_WAIT_POLICY=passive python tests/benchmarks/by_hand_autogluon.py FEATURES.parquet SECONDS OUT.parquet

Its validation set is the last snapshot known at the test, its training rows are those known at that snapshot. Writes label and
probability of the test rows, in the order of the table.
"""

import json
import sys
import tempfile

import pandas as pd
import pyarrow.parquet as pq
from autogluon.tabular import TabularPredictor


def main(path: str, seconds: float, out: str) -> None:
    """Fit, predict, write."""
    manifest = json.loads(pq.read_schema(path).metadata[b"holdfast.manifest"])
    rows = pq.read_table(path).to_pandas().sort_values(["snapshot", "customer_id"])
    horizon, test = pd.Timedelta(days=manifest["horizon_days"]), pd.Timestamp(manifest["test"])
    columns = [*manifest["features"], "churned"]
    moments = sorted(t for t in rows["snapshot"].unique() if t + horizon <= test)
    valid = rows[rows["snapshot"] == moments[-1]]
    train = rows[rows["snapshot"] + horizon <= moments[-1]]
    with tempfile.TemporaryDirectory() as folder:
        predictor = TabularPredictor(label="churned", problem_type="binary", eval_metric="log_loss", path=folder)
        predictor.fit(
            train[columns].astype({"churned": int}),
            tuning_data=valid[columns].astype({"churned": int}),
            use_bag_holdout=True,
            presets="best_quality",
            time_limit=seconds,
            num_cpus=1,
            num_gpus=0,
            ag_args_ensemble={"fold_fitting_strategy": "sequential_local"},
        )
        found = rows[rows["snapshot"] == test]
        p = predictor.predict_proba(found[manifest["features"]])[1]
    pd.DataFrame({"y": found["churned"], "p": p}).to_parquet(out)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3])
