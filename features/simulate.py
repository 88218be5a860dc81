"""A SYNTHETIC shop of any size with every canonical source: nothing in it was measured, and no person exists.

It is there to run Holdfast at a size and with sources that no public data set has, and to judge it by a truth that no real
shop knows. Every choice below is invented; where `domain.md` has a figure the constants lean on it, so that finding
such a figure again in these data says nothing about the world. The constants are in `simulate_plan.py` and `simulate_events.py`.

*Orders.* A person is first seen ordering at ``entered_at``. From then on his orders that last are a Poisson process of
``lambda_per_day`` times the season (day of the year with a ramp to Christmas, weekday, hour; 1 on average) while he has
not left. After each of them he leaves for good with his ``quit_probability``, or a higher one if the order hurt (late
delivery, complaint left lying, slow refund) and he is of the kind that minds (``service_hurt``). The decision falls at the
order; what hurt him shows later. Cancelled orders come on top, within 12 hours they are void, and nobody leaves after
one. So whoever has not left at ``t`` places no lasting order in ``(t, t + H]`` with probability exactly
``exp(-lambda * integral of the season)``, and whoever has left, with 1.

*Contacts.* About monthly, while he consents to marketing, a person is assigned a tier at random (``truth_assignments``
has them all, tier 0 is the hold-out). With his own true effect for that tier, and whatever his state, the contact brings
one extra order, at a time of the following 7 days drawn by the season. An extra order is never cancelled and
changes nothing else: it does not bring him back for good, nor does he leave after it.

*Accounts.* About 5 % of the ids are second accounts: from their registration on the person does everything under the new
id, and some weeks later it is seen on a device of the first. Truth is of the person, and both ids carry it (``person_id`` is
the first). Some devices are terminals that many strangers use, and must join nobody.

*Signs.* Price-sensitive people claim coupons, get discounts and leave sooner; people of high value buy dearer goods, more
often. Visits without an order and coupon claims go on at a steady rate while a person has not left and then fade over some
weeks; they tell the state, never the time of the next order. A visit leads up to most orders.

*Flaws.* About 3 % of the events arrive hours to days late (never after the end: what is not known by then is known then),
0.3 % of the rows with a key come twice, and some optional fields are empty. All times are local, to the second and
without regard to summer time; the span ends at 2026-01-01.
"""

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from features.errors import InputError
from features.files import read_json, replacing, write_json, write_text
from features.schema import SOURCES
from features.simulate_plan import (
    CHUNK_CUSTOMERS,
    CONVERSION_DAYS,
    DAY,
    DAYS,
    END,
    EVENTS_PER_CUSTOMER,
    LINES_PER_CUSTOMER,
    LONGEST_DAYS,
    NEVER,
    SEED,
    SHORTEST_DAYS,
    Ids,
    Plan,
    Table,
    Text,
    arrived,
    shop_days,
)
from features.terminal import progress as told

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from features.simulate_events import World

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

TRUTH = ("truth", "truth_assignments")
NAME, PARAMETERS = "simulated", "simulation.json"
HIGH_VALUE_PER_YEAR = 1000
"""Of the mapping file: the shop sells dearer goods to few."""
EFFECT_TIERS = ("nudge", "offer", "concierge")
COPIED = 0.003
"""Share of the rows with a key that come twice."""
KEY_LETTERS = {"orders": "O", "order_lines": "L", "events": "E", "contacts": "K", "coupons": "G", "tickets": "T"}
KEY_LETTERS |= {"reviews": "W", "deliveries": "V"}
PROMISES = ("due_at", "expires_at")
NOT_BROUGHT = ("decision_id",)
"""Nobody decided about these customers."""
"""Times that may lie ahead of the end."""


def simulate(
    folder: Path,
    customers: int,
    seed: int = SEED,
    days: int = DAYS,
    *,
    lines_per_customer: float = LINES_PER_CUSTOMER,
    events_per_customer: float = EVENTS_PER_CUSTOMER,
    chunk_customers: int = CHUNK_CUSTOMERS,
    force: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """Write the Parquet parts of a simulated shop and its truth under ``folder``; returns its mapping file.

    Each chunk of customers becomes one part of every table, made from the seed and its own number alone. Parts that the
    same call has written before are kept. ``lines_per_customer`` and ``events_per_customer`` are averages over 730 days (to
    about a tenth; in other spans events go with the days, orders with less); the events of visits that lead to an order
    are always there. ``progress`` is told the customers done after each chunk.

    Raises InputError for a parameter out of range, or when the folder holds anything but this simulation and not ``force``.
    """
    plan = Plan(customers, seed, days, lines_per_customer, events_per_customer, chunk_customers)
    plan.check()
    _prepare(folder, plan, force)
    for number, first in enumerate(range(0, customers, chunk_customers)):
        parts = {name: folder / name / f"part-{number:05d}.parquet" for name in (*SOURCES, *TRUTH)}
        if not all(path.exists() for path in parts.values()):
            _write_chunk(parts, plan, number)
        if progress:
            progress(min(first + chunk_customers, customers))
    return write_text(folder / f"{NAME}.toml", _mapping(plan))


def simulate_command(
    folder: Annotated[Path, typer.Argument(help="folder to write: Parquet parts, truth and simulated.toml")],
    customers: Annotated[int, typer.Option(min=1, help="customers, up to 10,000,000")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="seed of everything random")] = SEED,
    days: Annotated[int, typer.Option(help=f"days of history before 2026-01-01, {SHORTEST_DAYS} to {LONGEST_DAYS}")] = DAYS,
    force: Annotated[bool, typer.Option(help="write over what the folder holds of another simulation")] = False,
) -> None:
    """Write a SYNTHETIC shop with every source and its truth, to try Holdfast at any size; killed, it continues on the next call."""
    told(f"simulating {customers:,} customers over {days} days (synthetic data, seed {seed})")
    file = simulate(folder, customers, seed, days, force=force, progress=lambda done: told(f"  {done:,} customers"))
    told(f"wrote {file}; next: holdfast run --dataset {file}")


def true_churn_probability(truth: "pa.Table", snapshot: datetime, horizon_days: float, assignments: "pa.Table | None" = None) -> "Floats":
    """True probability of no lasting order in ``(snapshot, snapshot + horizon_days]``, given who has left; (rows of truth,).

    ``truth`` is the table of that name, or whole persons of it; all ids of a person get the person's probability. Without
    ``assignments`` no contact brings an order; with them (``truth_assignments``), a contact whose 7 days reach into the window
    brings one there with its effect times the share of the season's integral over those days that lies in the window: own part
    times product of (1 - effect x share). What is known of contacts is that they were sent, not whether they brought an order
    before the snapshot. NaN before a person's first order. The season is known until three years after the end.

    Exact but for orders of the window's last 12 hours that are cancelled after it.
    """
    import numpy as np

    begin = int((snapshot - datetime(1970, 1, 1)).total_seconds())
    end = begin + int(horizon_days * DAY)
    entered, left = _seconds(truth["entered_at"]), _seconds(truth["left_at"])
    rate = truth["lambda_per_day"].to_numpy()
    silent = np.where(left <= begin, 1.0, np.exp(-rate * (shop_days(end) - shop_days(begin))))
    if assignments is not None:
        silent *= _unmoved(truth, assignments, begin, end)
    return np.where((entered <= begin) | (rate == 0), silent, np.nan)


def _unmoved(truth: "pa.Table", assignments: "pa.Table", begin: int, end: int) -> "Floats":
    """Probability that no contact brings a person to an order in the window, (rows of truth,)."""
    import numpy as np
    import pyarrow.compute as pc

    sent = _seconds(assignments["assigned_at"])
    near = (sent < end) & (sent + CONVERSION_DAYS * DAY > begin)
    near &= pc.is_in(assignments["customer_id"], truth["customer_id"]).to_numpy()
    sent, reached = sent[near], assignments.filter(near)
    low, high = shop_days(sent), shop_days(sent + CONVERSION_DAYS * DAY)
    share = (np.minimum(high, shop_days(end)) - np.maximum(low, shop_days(begin))) / (high - low)
    row = pc.index_in(reached["customer_id"], truth["customer_id"]).to_numpy()
    effects = np.stack([np.zeros(len(truth)), *(truth[f"effect_{tier}"].to_numpy() for tier in EFFECT_TIERS)], axis=1)
    moved = effects[row, reached["tier"].to_numpy()] * share
    person = pc.index_in(truth["person_id"], pc.unique(truth["person_id"])).to_numpy()
    return np.exp(np.bincount(person[row], np.log1p(-moved), len(truth)))[person]


def _seconds(times: Any) -> "Ints":
    """Times as seconds since 1970; null is ``NEVER``."""
    import numpy as np

    found = times.to_numpy().astype("M8[s]")
    return np.where(np.isnat(found), NEVER, found.astype(np.int64))


def _prepare(folder: Path, plan: Plan, force: bool) -> None:
    """Leave only parts of the same plan in the folder."""
    file = folder / PARAMETERS
    if file.exists() and read_json(file) == asdict(plan):
        return
    if folder.exists() and any(folder.iterdir()):
        if not force:
            raise InputError(str(folder), "is not empty and holds no such simulation", "choose another folder, or --force")
        for name in (*SOURCES, *TRUTH):
            for part in (folder / name).glob("part-*.parquet"):
                part.unlink()
        (folder / f"{NAME}.toml").unlink(missing_ok=True)
    write_json(file, asdict(plan))


def _mapping(plan: Plan) -> str:
    head = f"""\
# SYNTHETIC data made by `holdfast simulate`: {plan.customers} customers, seed {plan.seed}. No person exists; nothing was measured.
name = "{NAME}"
timezone = "Europe/Berlin"
currency = "EUR"
personal = false
synthetic = true

[churn]
horizon_days = 90
lookback_days = 365

[segments]
high_value_per_year = {HIGH_VALUE_PER_YEAR}
"""
    tables = (
        f'\n[tables.{name}]\npath = "{name}/*.parquet"\n[tables.{name}.columns]\n'
        + "".join(f'{column.name} = "{column.name}"\n' for column in source.columns if column.name not in NOT_BROUGHT)
        for name, source in SOURCES.items()
    )
    return head + "".join(tables)


def _assignments(w: "World") -> Table:
    """All assignments, the hold-out too; ``converted``: the contact has brought an order before the end."""
    given = {"assigned_at": w.contacts.at, "tier": w.contacts.tier, "propensity": w.contacts.propensity}
    return {"customer_id": w.named("C", w.account(w.contacts))} | given | {"converted": w.contacts.order_at < END}


def _truth(w: "World") -> Table:
    """One row an account, with what its person is like."""
    import numpy as np

    person = w.people.where(w.owner)
    effects = {f"effect_{tier}": person.effects[:, place] for place, tier in enumerate(EFFECT_TIERS, 1)}
    return {
        "customer_id": w.named("C", np.arange(w.owner.size)),
        "person_id": w.named("C", w.owner),
        "entered_at": person.entered,
        "left_at": w.left[w.owner],
        "lambda_per_day": person.rate,
        "quit_probability": person.quit,
        "price_sensitive": person.price_sensitive,
        "service_hurt": person.service_hurt,
        "value_level": person.value_level,
    } | effects


def _finished(w: "World", name: str, columns: Table) -> Table:
    """The table as the shop has it: keys, customer ids, events until the end, when it learnt of each, and rows twice.

    ``account`` stands for the customer id; a key that is not there is the row's number.
    """
    import numpy as np

    source, n = SOURCES[name], next(iter(columns.values())).size
    if "account" in columns:
        columns["customer_id"] = w.named("C", columns.pop("account"))
    if name in KEY_LETTERS:
        columns[source.key[0]] = w.ids(KEY_LETTERS[name], np.arange(n))
    if source.event_time is not None and not (past := columns[source.event_time] < END).all():
        columns = {column: values[past] for column, values in columns.items()}
    for column in source.columns:
        if column.name.endswith("arrived_at") and column.default in columns:
            columns[column.name] = arrived(w.rng, columns[column.default])
    if source.key:
        rows = np.arange(columns[source.key[0]].numbers.size)
        rows = np.concatenate([rows, w.rng.choice(rows, w.rng.binomial(rows.size, COPIED))])
        columns = {column: values[rows] for column, values in columns.items()}
    return {column.name: columns[column.name] for column in source.columns if column.name not in NOT_BROUGHT}


def _write_chunk(parts: dict[str, Path], plan: Plan, number: int) -> None:
    """Make one chunk and write its part of every table."""
    from features.simulate_events import TABLES, world  # heavy

    w = world(plan, number)
    for name, make in TABLES.items():
        _write(parts[name], _finished(w, name, make(w)))
    _write(parts["truth"], _truth(w))
    _write(parts["truth_assignments"], _assignments(w))


def _write(path: Path, columns: Table) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: _arrow(values, name) for name, values in columns.items()})
    repeating = [name for name, values in columns.items() if isinstance(values, Text)]
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=1, use_dictionary=repeating, store_schema=False)


def _arrow(values: Any, name: str) -> "pa.Array":
    """A column as Arrow: times from the end on, NaN and texts numbered -1 are null."""
    import numpy as np
    import pyarrow as pa

    if isinstance(values, Text):
        codes = values.codes.astype(np.int32)
        return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), pa.array(values.words))
    if isinstance(values, Ids):
        return _spelt(values)
    if name.endswith("_at"):
        known = values if name in PROMISES else np.where(values < END, values, NEVER)
        return pa.array((known * 1_000_000).astype("M8[us]"), mask=known >= NEVER)
    return pa.array(values, from_pandas=True)


def _spelt(ids: Ids) -> "pa.Array":
    """Ids letter by letter, all of one width: much faster than Python's own texts."""
    import numpy as np
    import pyarrow as pa

    n, width = ids.numbers.size, ids.digits + 1
    spelt = np.empty((n, width), dtype=np.uint8)
    spelt[:, 0] = ids.letters
    rest = ids.numbers
    for place in range(ids.digits, 0, -1):
        rest, digit = np.divmod(rest, 10)
        spelt[:, place] = digit + ord("0")
    offsets = np.arange(0, (n + 1) * width, width, dtype=np.int32)
    return pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(spelt))
