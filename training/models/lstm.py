"""An LSTM over weekly activity, joined late by the static feature row."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.models.base import Candidate, Floats, Report, Rows, level_free_log_loss, logit
from training.models.scaling import Scaler

MAX_EPOCHS = 12
PATIENCE_EPOCHS = 2
BATCH = 512
PREDICT_BATCH = 8192
CLIP_NORM = 1.0


class Network(nn.Module):
    """LSTM's last state and the scaled static features -> one logit."""

    def __init__(self, channels: int, static: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, hidden, batch_first=True)
        self.static = nn.Sequential(nn.Linear(static, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 1))

    def forward(self, weeks_NWC: Tensor, x_NF: Tensor) -> Tensor:
        """Logits of churn, shape (n,)."""
        _, (state_1NH, _) = self.lstm(weeks_NWC)
        z_NZ = torch.cat([state_1NH[0], self.static(x_NF)], dim=1)
        logits: Tensor = self.head(z_NZ).squeeze(1)
        return logits


class LSTM(Candidate):
    """Network, scaler and shape; weights as safetensors, the rest as JSON."""

    name = "lstm"
    requirements = ("torch", "safetensors")
    file = "model.safetensors"

    def __init__(self, network: Network, scaler: Scaler, shape: dict[str, Any], epochs: int) -> None:
        self.network, self.scaler, self.shape, self.epochs = network, scaler, shape, epochs

    @classmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """Capacity, regularisation and learning rate."""
        return {
            "hidden": trial.suggest_categorical("hidden", [16, 32]),
            "dropout": trial.suggest_float("dropout", 0.2, 0.5),
            "learning_rate": trial.suggest_float("learning_rate", 3e-4, 2e-3, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
        }

    @classmethod
    def fit(cls, params: Mapping[str, Any], train: Rows, seed: int, valid: Rows | None = None, report: Report | None = None) -> "LSTM":
        """Fit on the CPU with one thread, reproducibly; see `Candidate.fit`."""
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        scaler = Scaler.fit(train.x_NF)
        shape = {"channels": train.weeks_NWC.shape[2], "static": len(train.names), "hidden": params["hidden"], "dropout": params["dropout"]}
        model = cls(Network(**shape), scaler, shape, 0)
        model._train(params, train, seed, valid, report)
        model.network.eval()
        return model

    def _train(self, params: Mapping[str, Any], train: Rows, seed: int, valid: Rows | None, report: Report | None) -> None:
        optimizer = torch.optim.AdamW(self.network.parameters(), params["learning_rate"], weight_decay=params["weight_decay"])
        weeks, x = self._tensors(train)
        y = torch.from_numpy(train.y.astype(np.float32))
        shuffle = torch.Generator().manual_seed(seed)
        best, best_state = float("inf"), None
        for epoch in range(MAX_EPOCHS if valid is not None else params["rounds"]):
            self._epoch(optimizer, weeks, x, y, shuffle)
            if valid is None:
                self.epochs = epoch + 1
                continue
            loss = level_free_log_loss(valid, self.predict(valid))
            if loss < best:
                best, self.epochs = loss, epoch + 1
                best_state = {name: value.clone() for name, value in self.network.state_dict().items()}
            if report is not None:
                report(epoch, loss)
            if epoch + 1 - self.epochs >= PATIENCE_EPOCHS:
                break
        if best_state is not None:
            self.network.load_state_dict(best_state)

    def _epoch(self, optimizer: torch.optim.Optimizer, weeks: Tensor, x: Tensor, y: Tensor, shuffle: torch.Generator) -> None:
        self.network.train()
        for rows in torch.split(torch.randperm(len(y), generator=shuffle), BATCH):
            loss = nn.functional.binary_cross_entropy_with_logits(self.network(weeks[rows], x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
            optimizer.step()

    def _tensors(self, rows: Rows) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(rows.weeks_NWC), torch.from_numpy(self.scaler.apply(rows.x_NF).astype(np.float32))

    @property
    def rounds(self) -> int:
        """Epochs in force."""
        return self.epochs

    @torch.no_grad()
    def _logits(self, weeks: Tensor, x: Tensor) -> Floats:
        self.network.eval()
        parts = [self.network(w, s) for w, s in zip(torch.split(weeks, PREDICT_BATCH), torch.split(x, PREDICT_BATCH), strict=True)]
        return torch.cat(parts).double().numpy() if len(x) else np.empty(0)

    def predict(self, rows: Rows) -> Floats:
        """Uncalibrated churn probability, shape (n,)."""
        z = self._logits(*self._tensors(rows))
        return 0.5 * (1 + np.tanh(0.5 * z))

    def contributions(self, rows: Rows) -> Floats:
        """Occlusion: how far the log odds fall when a feature is set to its training mean, shape (n, f)."""
        weeks, x = self._tensors(rows)
        base = logit(self.predict(rows))
        found = np.zeros(rows.x_NF.shape)
        for column in range(len(rows.names)):
            without = x.clone()
            without[:, column] = 0.0
            found[:, column] = base - self._logits(weeks, without)
        return found

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and shape, scaler and epochs (JSON)."""
        save_file(dict(self.network.state_dict()), folder / self.file)
        described = {"shape": self.shape, "scaler": self.scaler.to_json(), "epochs": self.epochs}
        (folder / "network.json").write_text(json.dumps(described, sort_keys=True), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "LSTM":
        """Read what `save` wrote."""
        described = json.loads((folder / "network.json").read_text(encoding="utf-8"))
        network = Network(**described["shape"])
        network.load_state_dict(load_file(folder / cls.file))
        network.eval()
        torch.set_num_threads(1)
        return cls(network, Scaler.from_json(described["scaler"]), described["shape"], described["epochs"])
