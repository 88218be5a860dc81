"""Fold, step two: the profile's arrays -> what was known of n customers at one snapshot.

`as_of` is the only time filter of the features: nothing that happened or arrived after the snapshot passes it. The families
(`windows.py`, `gaps.py`, ...) see nothing but its result.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from features.events import Events, Floats, Ints, Mask, Taken
from features.profile import NEVER, PERSON, Log, Profile, nothing
from features.reduce import KINDS, LATEST

_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class History:
    """What was known of n customers with at least one order at ``snapshot``."""

    snapshot: datetime
    horizon_days: int
    customer_id: pa.StringArray
    rows: Ints
    """Row of each customer in the profile that this is a view of, shape (n,)."""
    person_of: Ints
    """Row in the profile of the person that each of the profile's customers was known to be."""
    events: dict[str, Events]
    countries: pa.StringArray

    @property
    def n(self) -> int:
        """Number of customers."""
        return len(self.customer_id)

    @property
    def orders(self) -> Events:
        """Orders that count at the snapshot."""
        return self.events["order"]

    @property
    def items(self) -> Events:
        """Products of these orders, one event per order and product."""
        return self.events["item"]

    @property
    def returns(self) -> Events:
        """Returns, refunds and cancelled lines."""
        return self.events["return"]

    @property
    def browse(self) -> Events:
        """Days with behaviour events."""
        return self.events["browse"]

    @property
    def contacts(self) -> Events:
        """Marketing contacts sent; responses are events of their own: ``delivered``, ``opened``, ``clicked``, ``converted``."""
        return self.events["contact"]


def microseconds(moment: datetime) -> int:
    """A naive local time on the profile's clock."""
    return int(np.datetime64(moment, "us").astype(np.int64))


def as_of(profile: Profile, snapshot: datetime, horizon_days: int, lookback_days: float = math.inf) -> History:
    """What was known at ``snapshot``: events known by then, not void by then, of persons as linked by then.

    Only persons still worth predicting: whose last counting order lies within the look-back.
    """
    now = microseconds(snapshot)
    person_of = _persons(profile, now)
    present = np.zeros(person_of.size, dtype=bool)
    if "order" in profile.logs:
        orders = profile.logs["order"]
        recent = _known(orders, now) & (now - orders.at <= lookback_days * _DAY_US)
        present[person_of[orders.customer[recent]]] = True
    count = int(present.sum())
    number = np.where(present, np.cumsum(present) - 1, -1)[person_of]
    events, linked = {}, profile.linked
    for kind, (log, columns) in _NOTHING.items():
        if kind in profile.logs:
            found = _events(profile.logs[kind], now, number, count, linked)
            events[kind] = _one_a_day(found, columns) if kind in KINDS and KINDS[kind].build else found
        else:
            events[kind] = Events(count, log.customer, _NO_FLOATS, columns)
    rows = present.nonzero()[0]
    ids = profile.customer_id if count == present.size else profile.customer_id.take(pa.array(rows))
    return History(snapshot, horizon_days, ids, rows, person_of, events, profile.countries)


def _known(log: Log, now: int) -> Mask:
    """Which events are known by now and not void."""
    known: Mask = log.known_at <= now
    return known if log.void_at is None else known & (log.void_at > now)


def _events(log: Log, now: int, number: Ints, count: int, linked: bool) -> Events:
    """The events known by now of customers with a number, sorted by number and time; states not known by now are hidden."""
    customer = number[log.customer]
    rows = (_known(log, now) & (customer >= 0)).nonzero()[0]
    if linked:  # customers folded together are sorted by time, whoever they are at this snapshot
        rows = rows[np.argsort(customer[rows], kind="stable")]
    columns = Taken(log.columns, rows, _states(log, now, rows))
    return Events(count, customer[rows], np.maximum((now - columns["at"]) / _DAY_US, 0.0), columns)


def _one_a_day(days: Events, columns: Mapping[str, Any]) -> Events:
    """One event a customer and day of a kind that the engine adds up by day.

    A day has several rows where part of it became known after an earlier snapshot, or where a person has several ids.
    """
    again = (days.customer[1:] == days.customer[:-1]) & (days.at[1:] == days.at[:-1])
    if not again.any():
        return days
    first = np.append(True, ~again).nonzero()[0]
    merged: dict[str, Any] = {"at": days.at[first]}
    for name in columns.keys() - {"at"}:
        merged[name] = (np.fmax if name in LATEST else np.add).reduceat(days[name], first)
    return Events(days.n, days.customer[first], days.age_days[first], merged)


def _states(log: Log, now: int, rows: Ints) -> dict[str, Floats]:
    """Days since the later state and since the promise, as far as they are known by now."""
    found = {}
    if log.done_at is not None and log.done_known_at is not None:
        found["done_age_days"] = np.where(log.done_known_at[rows] > now, np.nan, (now - log.done_at[rows]) / _DAY_US)
    if log.due_at is not None:
        due = log.due_at[rows]
        found["due_age_days"] = np.where(due == NEVER, np.nan, (now - due) / _DAY_US)
    return found


def _persons(profile: Profile, now: int) -> Ints:
    """Row of the person that each customer of the profile was known to be, shape (customers,)."""
    person_of = np.arange(len(profile.customer_id))
    if PERSON in profile.logs:
        links = profile.logs[PERSON]
        here = links.at == now
        person_of[links.customer[here]] = links.columns[PERSON][here]
    return person_of


_NO_FLOATS = np.zeros(0)
_NOTHING: dict[str, tuple[Log, dict[str, Any]]] = {kind: (log, {**log.columns, **_states(log, 0, log.customer)}) for kind, log in nothing()}
