"""The networks of `lstm.py` packed for prediction: all of them in one recurrence, rows shared among threads, all in double precision."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.sequences import EVENT_KINDS, WEEKS
from training.models.base import Floats, Rows
from training.models.parallel import each, slices
from training.models.reader import AS_THEY_ARE, GAP, GAUSS, Attention, Entries, Ints, Places, Reader, event_entries, weekly_entries
from training.models.recurrence import SERIAL, Cells, forward, serial_product

BLOCK = 16_384
"""Rows whose states are held at a time."""
FEW_ROWS = 32
"""Up to these a thread's start costs more than it saves."""
Scaled = Callable[[Floats], Floats]
"""Features -> static inputs of the networks, (n, f) both."""


@dataclass(frozen=True)
class Head:
    """What joins two states (h) and f static features, in c networks: two dense layers and a linear way past them.

    ``static``: (f, h * c), and the linear way, a mean over the networks, as its last column; its bias (h, c, 1); ``deep``: (c, h, 3h),
    its bias (h, c, 1); ``out``: (h, c, 1), the share 1 / c in it; ``bias``: a mean over the networks.
    """

    static: Floats
    static_bias: Floats
    deep: Floats
    deep_bias: Floats
    out: Floats
    bias: float

    @classmethod
    def of(cls, networks: Sequence[Any]) -> "Head":
        """The dense layers of `lstm.Network` modules."""
        static, inner, last = [one.static[0] for one in networks], [one.deep[1] for one in networks], [one.deep[4] for one in networks]
        weights = np.stack([_array(layer.weight) for layer in static], axis=2)  # (h, f, c)
        wide = np.mean([_array(network.wide.weight)[0] for network in networks], axis=0)
        bias = float(np.mean([_array(layer.bias) for layer in last]) + np.mean([_array(network.wide.bias) for network in networks]))
        return cls(
            np.column_stack([weights.transpose(1, 0, 2).reshape(wide.size, -1), wide]),
            _columns(layer.bias for layer in static),
            np.stack([_array(layer.weight) for layer in inner]),
            _columns(layer.bias for layer in inner),
            _columns(layer.weight[0] for layer in last) / len(networks),
            bias,
        )

    def logits(self, x_NF: Floats, states: Floats) -> Floats:
        """Mean log odds of the networks, (n,), of states (2, h, c, 1, n)."""
        projected = serial_product(x_NF, self.static)
        _, hidden = self._hidden(projected[:, :-1], states, AS_THEY_ARE)
        return np.asarray((self.out * hidden).sum(axis=(0, 1)) + projected[:, -1] + self.bias)

    @property
    def rows(self) -> int:
        """Rows of a part, at one place."""
        _, h, width = self.deep.shape
        return max(16, min(512, SERIAL // (h * width)))

    def gradients(self, x_NF: Floats, states: Floats) -> Floats:
        """Of the mean log odds: to features, integrated over `GAUSS`, (n, f); those to the states overwrite them."""
        projected = serial_product(x_NF, self.static[:, :-1])
        static, hidden = self._hidden(projected, states, [place for place, _ in GAUSS])
        _, h, c, p, n = states.shape
        to_hidden = self.out * (hidden > 0)
        to_z = np.matmul(self.deep.transpose(0, 2, 1), to_hidden.transpose(1, 0, 2)).transpose(1, 0, 2)
        states[...] = to_z[: 2 * h].reshape(2, h, c, p, n)
        to_static = (to_z[2 * h :] * (static > 0)).reshape(h * c, p, n)
        integrated = np.tensordot(to_static, [weight for _, weight in GAUSS], axes=(1, 0))
        return serial_product(integrated.T, self.static[:, :-1].T) + self.static[:, -1]

    def _hidden(self, projected_NS: Floats, states: Floats, places: Places) -> tuple[Floats, Floats]:
        """Static and deep layer, (h, c, p * n) each."""
        _, h, c, p, n = states.shape
        projected = projected_NS.T.reshape(h, c, 1, n)
        z = np.empty((3 * h, c, p * n))
        z[: 2 * h] = states.reshape(2 * h, c, p * n)
        static = z[2 * h :]
        static[...] = (projected * np.reshape(places, (p, 1))).reshape(h, c, p * n)
        static += self.static_bias
        np.maximum(static, 0.0, out=static)
        hidden = np.matmul(self.deep, z.transpose(1, 0, 2)).transpose(1, 0, 2) + self.deep_bias
        return static, np.maximum(hidden, 0.0, out=hidden)


@dataclass(frozen=True)
class Packed:
    """Networks of one shape, read only: threads may share it."""

    weekly: Reader
    events: Reader
    joint: Cells
    """The cells of both readers, for a row alone."""
    head: Head

    @classmethod
    def of(cls, networks: Sequence[Any]) -> "Packed":
        """Pack `lstm.Network` modules."""
        attention = None
        if networks[0].attention is not None:
            attention = Attention(_columns(network.attention.weight[0] for network in networks)[:, :, 0])
        weekly = Cells.pack([network.weekly for network in networks])
        events = Cells.pack([network.latest for network in networks], [_event_inputs(_array(network.types.weight)) for network in networks])
        return cls(Reader.of(weekly, WEEKS, attention), Reader.of(events, 0), weekly.beside(events), Head.of(networks))

    @property
    def networks(self) -> int:
        """How many there are, c."""
        return len(self.weekly.cells.weights)

    def logits(self, rows: Rows, scaled: Scaled) -> Floats:
        """Mean log odds of the networks, (n,)."""
        if len(rows) == 1:
            return self.head.logits(scaled(rows.x_NF), self._states_of_one(rows))
        found = np.empty(len(rows))
        for at, some in _blocks(rows):
            block, states = found[at], self._states(weekly_entries(some), event_entries(some), AS_THEY_ARE)

            def fill(part: slice, some: Rows = some, block: Floats = block, states: Floats = states) -> None:
                block[part] = self.head.logits(scaled(some.x_NF[part]), states[..., part])

            each(fill, list(slices(len(some), self.head.rows)), len(some), FEW_ROWS)
        return found

    def contributions(self, rows: Rows, scaled: Scaled) -> tuple[Floats, Floats, Floats]:
        """Integrated gradients of the mean log odds: of features (n, f), weekly channels (n, channels) and kinds of event (n, kinds)."""
        found = np.empty(rows.x_NF.shape), np.zeros((len(rows), len(rows.channels))), np.zeros((len(rows), len(EVENT_KINDS)))
        for at, some in _blocks(rows):
            self._contribute(some, scaled, *(part[at] for part in found))
        return found

    def _contribute(self, rows: Rows, scaled: Scaled, by_feature: Floats, by_channel: Floats, by_kind: Floats) -> None:
        """Forwards without keeping what is on the way, through the head and back, then chunk by chunk again, this time keeping it."""
        weeks, events = weekly_entries(rows), event_entries(rows)
        states = self._states(weeks, events, [place for place, _ in GAUSS])

        def head(part: slice) -> None:
            x_NF = scaled(rows.x_NF[part])
            by_feature[part] = x_NF * self.head.gradients(x_NF, states[..., part])

        def sequences(task: tuple[int, Ints, Entries]) -> None:
            side, chosen, entries = task
            told = self._reader(side).contributions(entries, states[side][..., chosen])
            inputs = entries.input if side == 0 else np.repeat(entries.input[::2], 2)  # a gap counts as its event's kind
            columns = by_channel if side == 0 else by_kind
            columns[chosen] = _table(entries.row, inputs, told, (chosen.size, columns.shape[1]))

        each(head, list(slices(len(rows), max(1, self.head.rows // len(GAUSS)))), len(rows), FEW_ROWS)
        each(sequences, self._tasks((weeks, events), len(GAUSS)), len(GAUSS) * len(rows), FEW_ROWS)

    def _states(self, weeks: Entries, events: Entries, places: Places) -> Floats:
        """What the head sees of both sequences, (2, h, c, p, n)."""
        n = weeks.sizes.size
        found = np.empty((2, self.joint.hidden, self.networks, len(places), n))

        def fill(task: tuple[int, Ints, Entries]) -> None:
            side, chosen, entries = task
            found[side][..., chosen] = self._reader(side).states(entries, places)

        each(fill, self._tasks((weeks, events), len(places)), len(places) * n, FEW_ROWS)
        return found

    def _reader(self, side: int) -> Reader:
        return self.events if side else self.weekly

    def _tasks(self, both: tuple[Entries, Entries], places: int) -> list[tuple[int, Ints, Entries]]:
        return [(side, *chunk) for side, entries in enumerate(both) for chunk in self._reader(side).chunks(entries, places)]

    def _states_of_one(self, rows: Rows) -> Floats:
        """As `_states`, (2, h, c, 1, 1): a row alone costs calls, so that the events' steps run beside those of the last weeks."""
        weeks, events, h, c = weekly_entries(rows), event_entries(rows), self.joint.hidden, self.networks
        length = int(events.end[0])
        first = min(int(weeks.first[0]), WEEKS - length)
        alone = WEEKS - length - first
        z, carry = self.joint.room(WEEKS - first, 1), np.zeros((h, 2 * c, 1))
        inputs = self.joint.inputs(z)
        inputs[weeks.step - first, weeks.input, :c, 0] = weeks.value[:, None]
        inputs[events.step + alone, events.input, c:, 0] = events.value[:, None]
        z[0, :h, :c], carry[:, :c] = self.weekly.quiet.z[first, :h], self.weekly.quiet.carry[first]
        carry = forward(self.joint, z[: alone + 1], carry).carry[0]
        z[alone, :h, c:], carry[:, c:] = 0.0, 0.0  # the events begin here
        forward(self.joint, z[alone:], carry)
        attention, last = self.weekly.attention, z[-1, :h]
        pooled = last[:, :c] if attention is None else attention.pooled(self.weekly.all_states(z[:, :, :c]))
        return np.stack([pooled, last[:, c:]])[:, :, :, None]


def _array(tensor: Any) -> Floats:
    return np.asarray(tensor.detach().cpu().double().numpy())


def _columns(tensors: Iterable[Any]) -> Floats:
    """One vector a network, (h, c, 1)."""
    return np.stack([_array(tensor) for tensor in tensors], axis=1)[:, :, None]


def _event_inputs(embedding: Floats) -> Floats:
    """From a one for the kind and the gap to what the events' cells read, (embedding + 1, kinds + 1); row 0 of an embedding is padding."""
    kinds = np.hstack([embedding[1:].T, np.zeros((embedding.shape[1], 1))])
    return np.vstack([kinds, np.eye(1, kinds.shape[1], GAP)])


def _blocks(rows: Rows) -> Iterator[tuple[slice, Rows]]:
    for at in slices(len(rows), BLOCK):
        yield at, rows if len(rows) <= BLOCK else rows.at(at)


def _table(row: Ints, column: Ints, values: Floats, shape: tuple[int, int]) -> Floats:
    """Sums of values by row and column."""
    flat = np.bincount(row * shape[1] + column, values, minlength=shape[0] * shape[1])
    return np.asarray(flat.reshape(shape))
