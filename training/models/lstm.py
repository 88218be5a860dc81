"""A recurrent network over two sequences, weekly activity and the last events, joined late by the static feature row."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from features.sequences import EVENT_KINDS
from training.models.base import Floats, Member, Report, Rows, level_free_log_loss, sigmoid
from training.models.packed import Packed
from training.models.reader import EVENT_LENGTH
from training.models.scaling import Scaler

MAX_EPOCHS = 8
PATIENCE_EPOCHS = 2
WARM_UP_EPOCHS = 0.5
BATCH = 512
CPU_ROWS = 100_000
"""Training rows at most where there is no GPU: neighbouring snapshots of a customer tell nearly the same."""
PREDICT_BATCH = 1024
CLIP_NORM = 1.0
TYPE_SIZE = 6
SEEDS = 3
"""Networks whose log odds are averaged in a final model; a trial of a study fits one."""
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""x_NWC, static x_NF, event types (n, l), log gaps (n, l), number of events (n,)."""


class Network(nn.Module):
    """Two recurrent cells' last states and the static features -> one logit; a linear way past them holds what is linear."""

    def __init__(self, channels: int, static: int, hidden: int, dropout: float, cell: str = "lstm", pooling: str = "last") -> None:
        super().__init__()
        recurrent = {"lstm": nn.LSTM, "gru": nn.GRU}[cell]
        self.weekly = recurrent(channels, hidden, batch_first=True)
        self.types = nn.Embedding(len(EVENT_KINDS) + 1, TYPE_SIZE, padding_idx=0)
        self.latest = recurrent(TYPE_SIZE + 1, hidden, batch_first=True)
        self.attention = nn.Linear(hidden, 1) if pooling == "attention" else None
        self.static = nn.Sequential(nn.Linear(static, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.deep = nn.Sequential(nn.Dropout(dropout), nn.Linear(3 * hidden, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 1))
        self.wide = nn.Linear(static, 1)

    def embed(self, types_NL: Tensor, gaps_NL: Tensor) -> Tensor:
        """Events as vectors, shape (n, l, TYPE_SIZE + 1)."""
        return torch.cat([self.types(types_NL), gaps_NL[:, :, None]], dim=2)

    def forward(self, weeks_NWC: Tensor, x_NF: Tensor, events_NLE: Tensor, number_N: Tensor) -> Tensor:
        """Logits of churn, shape (n,)."""
        week_NWH, _ = self.weekly(weeks_NWC)
        event_NLH, _ = self.latest(events_NLE)
        last = (number_N - 1).clamp(min=0)[:, None, None].expand(-1, 1, event_NLH.shape[2])
        latest_NH = event_NLH.gather(1, last)[:, 0] * (number_N > 0)[:, None]
        z_NZ = torch.cat([self._pooled(week_NWH), latest_NH, self.static(x_NF)], dim=1)
        logits: Tensor = (self.deep(z_NZ) + self.wide(x_NF)).squeeze(1)
        return logits

    def _pooled(self, week_NWH: Tensor) -> Tensor:
        if self.attention is None:
            return week_NWH[:, -1]
        weight_NW1 = torch.softmax(self.attention(torch.tanh(week_NWH)), dim=1)
        return (weight_NW1 * week_NWH).sum(dim=1)


class LSTM(Member):
    """Networks of a few seeds, whose log odds are averaged, scaler and shape; weights as safetensors, the rest as JSON."""

    name = "lstm"
    requirements = ("torch", "safetensors")
    reads_sequences = True
    file, shape_file = "model.safetensors", "network.json"
    strong: ClassVar[Mapping[str, Any]] = {"hidden": 16, "dropout": 0.3, "learning_rate": 2e-3, "weight_decay": 0.05}

    def __init__(
        self, networks: Sequence[Network], scaler: Scaler, shape: dict[str, Any], epochs: int, names: Sequence[str], told: Sequence[str]
    ) -> None:
        self.networks, self.scaler, self.shape, self.epochs = list(networks), scaler, shape, epochs
        self.names, self.told = tuple(names), tuple(told)
        self._ready: Packed | None = None

    @classmethod
    def suggest(cls, trial: Any) -> dict[str, Any]:
        """Capacity, regularisation and learning rate."""
        return {
            "hidden": trial.suggest_categorical("hidden", [8, 16]),
            "dropout": trial.suggest_float("dropout", 0.1, 0.6),
            "learning_rate": trial.suggest_float("learning_rate", 1e-3, 5e-3, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-3, 3e-1, log=True),
        }

    @classmethod
    def fit(cls, params: Mapping[str, Any], train: Rows, seed: int, valid: Rows | None = None, report: Report | None = None) -> "LSTM":
        """Fit on a GPU where there is one, else on the CPU with one thread, reproducibly; see `Member.fit`."""
        torch.set_num_threads(1)
        if len(train) > CPU_ROWS and not torch.cuda.is_available():
            train = train.at(np.sort(np.random.default_rng(seed).choice(len(train), CPU_ROWS, replace=False)))
        shape = {name: params[name] for name in ("hidden", "dropout", "cell", "pooling") if name in params}
        shape |= {"channels": len(train.channels), "static": len(train.names)}
        model = cls([], Scaler.fit(train.x_NF), shape, 0, train.names, [channel.feature for channel in train.channels])
        for number in range(params.get("seeds", SEEDS) if valid is None else 1):
            model._train(params, train, seed + 1000 * number, valid, report)
        return model

    def _train(self, params: Mapping[str, Any], train: Rows, seed: int, valid: Rows | None, report: Report | None) -> None:
        """Add a network. With ``valid`` it is kept as it was after its best epoch, and training ends when that is some epochs ago."""
        torch.manual_seed(seed)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = Network(**self.shape).to(device)
        fitting = _Fitting(network, params, math.ceil(len(train) / BATCH))
        x_NF = self.scaler.apply(train.x_NF).astype(np.float32)
        shuffle = np.random.default_rng(seed)
        best, best_epoch, best_state = math.inf, 0, None
        for epoch in range(1, (params["rounds"] if valid is None else MAX_EPOCHS) + 1):
            network.train()
            for rows in _batches(shuffle.permutation(len(train)), BATCH):
                fitting.step(_inputs(train.at(rows), x_NF[rows], device), train.y[rows])
            if valid is None:
                best_epoch = epoch
                continue
            loss = level_free_log_loss(valid, sigmoid(self._logits(network, valid)))
            if loss < best:
                best, best_epoch = loss, epoch
                best_state = {name: value.clone() for name, value in network.state_dict().items()}
            if report is not None:
                report(epoch, loss)
            if epoch - best_epoch >= PATIENCE_EPOCHS:
                break
        if best_state is not None:
            network.load_state_dict(best_state)
        self.epochs = best_epoch
        self.networks.append(_exact(network))

    @property
    def rounds(self) -> int:
        """Epochs in force."""
        return self.epochs

    def predict(self, rows: Rows) -> Floats:
        """Uncalibrated churn probability, shape (n,)."""
        return sigmoid(self._packed().logits(rows, self.scaler.apply))

    def _logits(self, network: Network, rows: Rows) -> Floats:
        network.eval()
        found = np.empty(len(rows))

        def one(part: Any) -> None:
            found[part] = self._some_logits(network, rows.at(part))

        parts = list(_batches(np.arange(len(rows)), PREDICT_BATCH))
        if len(parts) <= 1 or next(network.parameters()).is_cuda:
            for part in parts:
                one(part)
        else:  # a core each; within one, PyTorch keeps to one thread
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(one, parts))
        return found

    @torch.no_grad()
    def _some_logits(self, network: Network, rows: Rows) -> Floats:
        weight = next(network.parameters())
        weeks, x, types, gaps, number = _inputs(rows, self.scaler.apply(rows.x_NF), weight.device, weight.dtype)
        logits: Floats = network(weeks, x, network.embed(types, gaps), number).double().cpu().numpy()
        return logits

    def contributions(self, rows: Rows) -> Floats:
        """Integrated gradients of the log odds from an average customer without activity (Sundararajan et al. 2017), shape (n, f).

        What a sequence's channel adds is told by the feature that stands for it (`features.sequences.Channel.feature`).
        """
        found, by_channel, by_kind = self._packed().contributions(rows, self.scaler.apply)
        self._tell(found, by_channel, self.told)
        self._tell(found, by_kind, EVENT_KINDS.values())
        return found

    def _packed(self) -> Packed:
        """The networks as they are read in predictions, packed once."""
        if self._ready is None or self._ready.networks != len(self.networks):
            self._ready = Packed.of(self.networks)
        return self._ready

    def _tell(self, found: Floats, added: Floats, features: Iterable[str]) -> None:
        """Add each column to the feature that stands for it, where the table has it."""
        for column, feature in enumerate(features):
            if feature in self.names:
                found[:, self.names.index(feature)] += added[:, column]

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and shape, scaler and epochs (JSON)."""
        states = {f"{number}.{name}": value.float() for number, one in enumerate(self.networks) for name, value in one.state_dict().items()}
        save_file(states, folder / self.file)
        described = {"shape": self.shape, "scaler": self.scaler.to_json(), "epochs": self.epochs, "names": self.names, "told": self.told}
        (folder / self.shape_file).write_text(json.dumps(described, sort_keys=True), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "LSTM":
        """Read what `save` wrote."""
        described = json.loads((folder / cls.shape_file).read_text(encoding="utf-8"))
        states: dict[str, dict[str, Tensor]] = {}
        for name, value in load_file(folder / cls.file).items():
            number, _, key = name.partition(".")
            states.setdefault(number, {})[key] = value
        torch.set_num_threads(1)
        networks = [Network(**described["shape"]) for _ in states]
        for network, number in zip(networks, sorted(states, key=int), strict=True):
            network.load_state_dict(states[number])
            _exact(network)
        scaler = Scaler.from_json(described["scaler"])
        return cls(networks, scaler, described["shape"], described["epochs"], described["names"], described["told"])


class _Fitting:
    """The optimiser of one network: AdamW with a schedule, clipped gradients, mixed precision and all GPUs where there are some."""

    def __init__(self, network: Network, params: Mapping[str, Any], steps: int) -> None:
        self.network = network
        self.device = next(network.parameters()).device
        self.module = nn.DataParallel(network) if torch.cuda.device_count() > 1 else network
        self.optimizer = torch.optim.AdamW(network.parameters(), params["learning_rate"], weight_decay=params["weight_decay"])
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: _rate(step / steps))

    def step(self, inputs: Inputs, y: Floats) -> None:
        """Learn from one batch."""
        weeks, x, types, gaps, number = inputs
        with torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext():
            logits = self.module(weeks, x, self.network.embed(types, gaps), number)
        target = torch.from_numpy(y.astype(np.float32)).to(self.device)
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), target)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.schedule.step()


def _exact(network: Network) -> Network:
    """For predictions, in double precision: a row alone and the same row in a batch then agree to 1e-12."""
    return network.to("cpu").double().eval()


def _inputs(rows: Rows, x_NF: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> Inputs:
    types, gaps, number = rows.events(EVENT_LENGTH)
    weeks, x, gap = (torch.from_numpy(array).to(device, dtype) for array in (rows.weeks(), x_NF, np.log1p(gaps)))
    kinds, count = (torch.from_numpy(array).to(device) for array in (types.astype(np.int64), number))
    return weeks, x, kinds, gap, count


def _rate(epoch: float) -> float:
    """Learning rate over its peak: a linear warm-up, then half a cosine to a twentieth."""
    if epoch < WARM_UP_EPOCHS:
        return (epoch + 1e-3) / WARM_UP_EPOCHS
    done = min((epoch - WARM_UP_EPOCHS) / (MAX_EPOCHS - WARM_UP_EPOCHS), 1.0)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def _batches(rows: Any, size: int) -> Iterator[Any]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
