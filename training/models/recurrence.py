"""Recurrent cells of several networks side by side in plain NumPy: states forwards, gradients backwards.

A cell of this size costs PyTorch more in calls than in arithmetic. Here one product a step serves all networks: what enters it
is one array z of shape (k, cells, n) that holds the states (h), a one for the bias, and the inputs, in this order. All in double precision.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.models.base import Floats
from training.models.parallel import slices

SERIAL = 262_144
"""Multiplications up to which OpenBLAS keeps a product in the calling thread; above, its threads would fight ours."""
COLUMNS = 128
"""Rows of a chunk at most: what a step touches stays in the second-level cache."""
Gates = tuple[Floats, Floats, Floats, Floats, Floats, Floats]
"""Views of activations (4h, cells, n): all of them, the sigmoids, and each gate's (h, cells, n)."""
Step = Callable[[Gates, Floats, Floats, Floats, Floats, Floats], None]
Back = Callable[[Floats, Floats, Floats, Floats, Floats, Floats, Floats], None]


@dataclass(frozen=True)
class Cells:
    """Cells of one kind (``lstm`` or ``gru``) and size; ``weights``: (cells, 4h, k), a block of h for each gate."""

    kind: str
    hidden: int
    weights: Floats

    @classmethod
    def pack(cls, modules: Sequence[Any], embeddings: Sequence[Floats] | None = None) -> "Cells":
        """Cells of PyTorch's one-layer ``nn.LSTM`` or ``nn.GRU`` modules.

        ``embeddings``: for each module what maps the inputs given here to its own, (own inputs, inputs); None for the identity.
        """
        kind = "gru" if modules[0].mode == "GRU" else "lstm"
        found = []
        for place, module in enumerate(modules):
            state, given, by_state, by_given = (
                getattr(module, name).detach().cpu().double().numpy()
                for name in ("weight_hh_l0", "weight_ih_l0", "bias_hh_l0", "bias_ih_l0")
            )
            given = given if embeddings is None else given @ embeddings[place]
            found.append(_WEIGHTS[kind](state, given, by_state, by_given))
        return cls(kind, modules[0].hidden_size, np.stack(found))

    def beside(self, other: "Cells") -> "Cells":
        """These cells and, after them, others of the same kind and size; missing inputs have weight 0."""
        width = max(self.weights.shape[2], other.weights.shape[2])
        wide = [np.pad(cells.weights, ((0, 0), (0, 0), (0, width - cells.weights.shape[2]))) for cells in (self, other)]
        return Cells(self.kind, self.hidden, np.concatenate(wide))

    @property
    def columns(self) -> int:
        """Rows of a chunk."""
        _, gates, width = self.weights.shape
        return max(8, min(COLUMNS, SERIAL // (gates * width)))

    def room(self, steps: int, n: int) -> Floats:
        """Zeros for ``steps`` steps of n rows, the ones in place: z of shape (steps + 1, k, cells, n)."""
        cells, _, width = self.weights.shape
        z_TKCN = np.zeros((steps + 1, width, cells, n))
        z_TKCN[:, self.hidden] = 1.0
        return z_TKCN

    def inputs(self, z_TKCN: Floats) -> Floats:
        """The part of z that holds the inputs of every step, a view."""
        return z_TKCN[:-1, self.hidden + 1 :]


@dataclass(frozen=True)
class Trace:
    """What a pass leaves: z with every state, and activations of the gates (t, 4h, cells, n) and carries (t + 1, h, cells, n).

    Gates and carries are those of all steps where they were kept, else of the last one.
    """

    z: Floats
    gates: Floats
    carry: Floats


def forward(cells: Cells, z_TKCN: Floats, carry_HCN: Floats | float = 0.0, keep: bool = False) -> Trace:
    """Fill in the state after each step. z comes with the first state and all inputs; ``carry``: an LSTM's cell state before them."""
    steps, h, (_, _, count, n) = len(z_TKCN) - 1, cells.hidden, z_TKCN.shape
    gates = np.empty((steps if keep else 1, 4 * h, count, n))
    carry = np.empty((steps + 1 if keep else 1, h, count, n))
    carry[0] = carry_HCN
    spare, step, views = np.empty((h, count, n)), _STEPS[cells.kind], [_views(cells, activations) for activations in gates]
    given, product, states = z_TKCN.transpose(0, 2, 1, 3), gates.transpose(0, 2, 1, 3), z_TKCN[:, :h]
    for t in range(steps):
        here, after = (t, t + 1) if keep else (0, 0)
        np.matmul(cells.weights, given[t], out=product[here])
        step(views[here], carry[here], carry[after], states[t], states[t + 1], spare)
    return Trace(z_TKCN, gates, carry)


def backward(cells: Cells, trace: Trace, arriving_THCN: Floats) -> Floats:
    """Inputs times their gradients, (t, inputs, cells, n), of a kept pass.

    ``arriving``: gradients with respect to the state after each step, (t, h, cells, n), without what comes through later steps.
    The result overwrites the inputs in the trace.
    """
    h, back = cells.hidden, _BACKS[cells.kind]
    weights = np.ascontiguousarray(cells.weights.transpose(0, 2, 1))
    to_gates, to_z = np.empty(trace.gates.shape[1:]), np.empty(trace.z.shape[1:])
    to_carry, past, told = np.zeros_like(trace.carry[0]), np.zeros_like(trace.carry[0]), cells.inputs(trace.z)
    for t in reversed(range(len(trace.gates))):
        past += arriving_THCN[t]
        back(trace.gates[t], trace.carry[t], trace.carry[t + 1], trace.z[t, :h], past, to_carry, to_gates)
        np.matmul(weights, to_gates.transpose(1, 0, 2), out=to_z.transpose(1, 0, 2))
        past += to_z[:h]
        told[t] *= to_z[h + 1 :]
    return told


def serial_product(a_NK: Floats, b_KM: Floats) -> Floats:
    """The matrix product (n, m), in parts that OpenBLAS keeps in the calling thread."""
    found, rows = np.empty((len(a_NK), b_KM.shape[1])), max(1, SERIAL // b_KM.size)
    for part in slices(len(a_NK), rows):
        np.matmul(a_NK[part], b_KM, out=found[part])
    return found


def _views(cells: Cells, gates: Floats) -> Gates:
    h = cells.hidden
    return gates, gates[: _SIGMOIDS[cells.kind] * h], gates[:h], gates[h : 2 * h], gates[2 * h : 3 * h], gates[3 * h :]


_HALF = np.array(0.5)
"""An array: NumPy would make one of a plain number in every call."""


def _sigmoids(halves: Floats) -> None:
    """tanh(a / 2) -> sigmoid(a), in place; the weights of such gates are halved once."""
    np.multiply(halves, _HALF, out=halves)
    np.add(halves, _HALF, out=halves)


def _lstm_weights(state: Floats, given: Floats, by_state: Floats, by_given: Floats) -> Floats:
    i, f, g, o = np.split(np.hstack([state, (by_state + by_given)[:, None], given]), 4)
    return np.vstack([i / 2, f / 2, o / 2, g])


def _lstm_step(gates: Gates, carry: Floats, carry_after: Floats, state: Floats, state_after: Floats, spare: Floats) -> None:
    """c' = f c + i g, h' = o tanh(c') (Hochreiter and Schmidhuber 1997, with Gers' forget gate)."""
    every, sigmoids, i, f, o, g = gates
    np.tanh(every, out=every)
    _sigmoids(sigmoids)
    np.multiply(f, carry, out=carry_after)
    np.multiply(i, g, out=spare)
    np.add(carry_after, spare, out=carry_after)
    np.tanh(carry_after, out=spare)
    np.multiply(o, spare, out=state_after)


def _lstm_back(
    gates: Floats, carry: Floats, carry_after: Floats, state: Floats, to_state: Floats, to_carry: Floats, to_gates: Floats
) -> None:
    """Gradients of one step; ``to_state`` and ``to_carry`` come as those after it and leave as those before, the product's part apart."""
    h = len(state)
    i, f, o, g = gates[:h], gates[h : 2 * h], gates[2 * h : 3 * h], gates[3 * h :]
    bent = np.tanh(carry_after)
    np.multiply(to_state, bent, out=to_gates[2 * h : 3 * h])
    to_carry += to_state * o * (1 - bent * bent)
    np.multiply(to_carry, g, out=to_gates[:h])
    np.multiply(to_carry, carry, out=to_gates[h : 2 * h])
    np.multiply(to_carry * i, 1 - g * g, out=to_gates[3 * h :])
    _through_sigmoids(to_gates[: 3 * h], gates[: 3 * h])
    to_carry *= f
    to_state[...] = 0.0


def _gru_weights(state: Floats, given: Floats, by_state: Floats, by_given: Floats) -> Floats:
    """Reset and update gate, and the candidate's two parts, since only the state's passes the reset gate."""
    h = state.shape[1]
    both = np.hstack([state, (by_state + by_given)[:, None], given])[: 2 * h]
    past = np.hstack([state, by_state[:, None], np.zeros_like(given)])[2 * h :]
    new = np.hstack([np.zeros_like(state), by_given[:, None], given])[2 * h :]
    return np.vstack([both / 2, past, new])


def _gru_step(gates: Gates, carry: Floats, carry_after: Floats, state: Floats, state_after: Floats, spare: Floats) -> None:
    """n = tanh(new + r past), h' = n + z (h - n) (Cho et al. 2014, as PyTorch has it)."""
    _, sigmoids, r, z, past, n = gates
    np.tanh(sigmoids, out=sigmoids)
    _sigmoids(sigmoids)
    np.multiply(r, past, out=spare)
    np.add(n, spare, out=n)
    np.tanh(n, out=n)
    np.subtract(state, n, out=spare)
    np.multiply(spare, z, out=spare)
    np.add(spare, n, out=state_after)


def _gru_back(
    gates: Floats, carry: Floats, carry_after: Floats, state: Floats, to_state: Floats, to_carry: Floats, to_gates: Floats
) -> None:
    """As `_lstm_back`; there is no carry."""
    h = len(state)
    r, z, past, n = gates[:h], gates[h : 2 * h], gates[2 * h : 3 * h], gates[3 * h :]
    to_new = to_gates[3 * h :]
    np.multiply(to_state * (1 - z), 1 - n * n, out=to_new)
    np.multiply(to_new, past, out=to_gates[:h])
    np.multiply(to_state, state - n, out=to_gates[h : 2 * h])
    np.multiply(to_new, r, out=to_gates[2 * h : 3 * h])
    _through_sigmoids(to_gates[: 2 * h], gates[: 2 * h])
    to_state *= z


def _through_sigmoids(gradients: Floats, values: Floats) -> None:
    """With respect to halves of what entered the sigmoids, in place."""
    gradients *= values
    gradients *= 2 - 2 * values


_WEIGHTS: dict[str, Callable[..., Floats]] = {"lstm": _lstm_weights, "gru": _gru_weights}
_SIGMOIDS = {"lstm": 3, "gru": 2}
_STEPS: dict[str, Step] = {"lstm": _lstm_step, "gru": _gru_step}
_BACKS: dict[str, Back] = {"lstm": _lstm_back, "gru": _gru_back}
