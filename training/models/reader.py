"""Sequences of many rows through the cells of `recurrence.py`, without a step spent on what is empty.

Most customers were not there 52 weeks ago, or have few events. Rows are sorted by the steps they need and cut into chunks; states after
k empty weeks come from a table.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.sequences import EVENT_KINDS, WEEKS
from features.table import EVENTS, WEEKLY
from training.models.base import Floats, Rows
from training.models.recurrence import Cells, Trace, backward, forward

EVENT_LENGTH = 24
"""Of the last events this many are read."""
GAP = len(EVENT_KINDS)
"""Of the event cells' inputs, after one for each kind: log(1 + days since the event before)."""
GAUSS = ((0.5 - 0.15**0.5, 5 / 18), (0.5, 8 / 18), (0.5 + 0.15**0.5, 5 / 18))
"""Places and weights of Gauss and Legendre's quadrature of three points, by which gradients are integrated."""
AS_THEY_ARE = (1.0,)
Ints = npt.NDArray[np.int64]
Places = Sequence[float]
"""Points p between no activity (0) and the rows as they are (1) at which networks are run."""


@dataclass(frozen=True)
class Entries:
    """Sequences of n rows as what is not zero in them: ``step``, ``input`` and ``value`` (m,), row after row, ``sizes`` (n,) a row.

    ``first``: steps before a row's first entry that may be left out, ``end``: steps after which its state is asked for (n,).
    """

    step: Ints
    input: Ints
    value: Floats
    sizes: Ints
    first: Ints
    end: Ints

    @property
    def row(self) -> Ints:
        """The row of each entry, (m,)."""
        return np.repeat(np.arange(self.sizes.size), self.sizes)

    def chunks(self, size: int) -> Iterator[tuple[Ints, "Entries"]]:
        """Chunks of rows that need as many steps, the longest first: their places and entries."""
        order = np.argsort(self.first - self.end, kind="stable")
        ends = np.cumsum(self.sizes)
        for start in range(0, order.size, size):
            rows = order[start : start + size]
            at = run_places(ends[rows], self.sizes[rows])
            yield rows, Entries(self.step[at], self.input[at], self.value[at], self.sizes[rows], self.first[rows], self.end[rows])


def weekly_entries(rows: Rows) -> Entries:
    """Of the weekly channels."""
    cells, sizes = rows.flat(WEEKLY[0])
    step, channel = np.divmod(cells.astype(np.int64), max(len(rows.channels), 1))
    first = np.full(sizes.size, WEEKS)
    some = np.flatnonzero(sizes)
    if some.size:
        first[some] = np.minimum.reduceat(step, (np.cumsum(sizes) - sizes)[some])
    return Entries(step, channel, rows.flat(WEEKLY[1])[0].astype(np.float64), sizes, first, np.full(sizes.size, WEEKS))


def event_entries(rows: Rows) -> Entries:
    """Of the last events: two entries each, a one for the kind and the gap."""
    (types, sizes), gaps = rows.flat(EVENTS[0]), rows.flat(EVENTS[1])[0]
    length = np.minimum(sizes, EVENT_LENGTH)
    at = run_places(np.cumsum(sizes), length)
    step = np.arange(at.size) - np.repeat(np.cumsum(length) - length, length)
    inputs, values = np.full((at.size, 2), GAP), np.ones((at.size, 2))
    inputs[:, 0] = types[at].astype(np.int64) - 1
    values[:, 1] = np.log1p(gaps[at].astype(np.float32))
    return Entries(np.repeat(step, 2), inputs.ravel(), values.ravel(), 2 * length, np.zeros_like(length), length)


def run_places(ends: Ints, sizes: Ints) -> Ints:
    """Places in flat values of runs that end before ``ends`` and hold ``sizes`` values each, run after run."""
    return np.repeat(ends - np.cumsum(sizes), sizes) + np.arange(sizes.sum())


@dataclass(frozen=True)
class Attention:
    """Weights of the weeks: softmax of ``weights`` (h, c) times the tanh of a state; a bias would cancel."""

    weights: Floats

    def shares(self, states_THCN: Floats) -> Floats:
        """Of each week, (t, c, n)."""
        score = np.einsum("hc,thcn->tcn", self.weights, np.tanh(states_THCN))
        score = np.exp(score - score.max(axis=0))
        return np.asarray(score / score.sum(axis=0))

    def pooled(self, states_THCN: Floats) -> Floats:
        """The mean state, (h, c, n)."""
        return np.einsum("tcn,thcn->hcn", self.shares(states_THCN), states_THCN)

    def gradients(self, states_THCN: Floats, to_pooled_HCN: Floats) -> Floats:
        """With respect to every state, (t, h, c, n)."""
        shares = self.shares(states_THCN)
        along = np.einsum("hcn,thcn->tcn", to_pooled_HCN, states_THCN)
        to_score = shares * (along - (shares * along).sum(axis=0))
        slopes = self.weights[None, :, :, None] * (1 - np.tanh(states_THCN) ** 2)
        return np.asarray(shares[:, None] * to_pooled_HCN + to_score[:, None] * slopes)


@dataclass(frozen=True)
class Reader:
    """The cells of c networks that read one kind of sequence; ``quiet``: a row without entries, from which a row's first steps come."""

    cells: Cells
    quiet: Trace
    attention: Attention | None = None

    @classmethod
    def of(cls, cells: Cells, quiet_steps: int, attention: Attention | None = None) -> "Reader":
        """With the table of states after 0 ... ``quiet_steps`` empty steps."""
        return cls(cells, forward(cells, cells.room(quiet_steps, 1), keep=True), attention)

    def chunks(self, entries: Entries, places: int) -> list[tuple[Ints, Entries]]:
        """Parts of the rows, run at so many places, that are worth a task each."""
        return list(entries.chunks(max(self.cells.columns // places, 4)))

    def run(self, entries: Entries, places: Places, keep: bool = False) -> Trace:
        """Recur over some rows, at each place: p * n columns, place after place."""
        first, columns, h = int(entries.first.min()), len(places) * entries.sizes.size, self.cells.hidden
        z = self.cells.room(int(entries.end.max()) - first, columns)
        inputs, row = self.cells.inputs(z), entries.row
        for number, place in enumerate(places):
            inputs[entries.step - first, entries.input, :, row + number * entries.sizes.size] = place * entries.value[:, None]
        z[0, :h] = self.quiet.z[first, :h]
        return forward(self.cells, z, self.quiet.carry[first], keep)

    def states(self, entries: Entries, places: Places) -> Floats:
        """What the head sees of some rows: the last state, or the weeks' weighted mean, (h, c, p, n)."""
        trace, h = self.run(entries, places), self.cells.hidden
        if self.attention is not None:
            found = self.attention.pooled(self.all_states(trace.z))
        else:
            last = np.tile(entries.end - entries.first.min(), len(places))
            found = trace.z[last, :h, :, np.arange(last.size)].transpose(1, 2, 0)
        return found.reshape(h, -1, len(places), entries.sizes.size)

    def all_states(self, z_TKCN: Floats) -> Floats:
        """After every step, those from the table too, (t, h, c, n)."""
        h, steps = self.cells.hidden, len(self.quiet.z) - len(z_TKCN)
        lead = np.broadcast_to(self.quiet.z[1 : steps + 1, :h], (steps, *z_TKCN[0, :h].shape))
        return np.concatenate([lead, z_TKCN[1:, :h]])

    def contributions(self, entries: Entries, to_states_HCPN: Floats) -> Floats:
        """Integrated gradients of each entry, (m,), over all networks; ``to_states``: gradients with respect to `states` at `GAUSS`."""
        places, first, n = [place for place, _ in GAUSS], int(entries.first.min()), entries.sizes.size
        trace = self.run(entries, places, keep=True)
        told = backward(self.cells, trace, self._arriving(trace, entries, to_states_HCPN.reshape(*to_states_HCPN.shape[:2], -1)))
        row, found = entries.row, np.zeros(entries.step.size)
        for number, (place, weight) in enumerate(GAUSS):
            by_network = told[entries.step - first, entries.input, :, row + number * n]
            found += weight / place * by_network.sum(axis=1)
        return found

    def _arriving(self, trace: Trace, entries: Entries, to_states_HCM: Floats) -> Floats:
        if self.attention is not None:
            return self.attention.gradients(self.all_states(trace.z), to_states_HCM)[len(self.quiet.z) - len(trace.z) :]
        found = np.zeros_like(trace.z[:, : self.cells.hidden])
        last = np.tile(entries.end - entries.first.min(), len(GAUSS))
        found[last, :, :, np.arange(last.size)] = to_states_HCM.transpose(2, 0, 1)
        return found[1:]
