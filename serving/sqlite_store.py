"""The online store in one SQLite file.

SQLite was chosen over DuckDB and LMDB because a decision reads what was spent and writes what it spends in one transaction that all workers
share, and a look-up by id takes microseconds (measured: notebooks/LOG.md, 2026-11-25).
"""

import fcntl
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from serving.audit import subject
from serving.online import (
    BUSY_SECONDS,
    Charge,
    KeptAnswer,
    KeptContact,
    Listed,
    OnlineStore,
    PastContact,
    Standing,
    StoreBusy,
    in_force,
)

TURN_SECONDS = 0.002
"""How often a writer looks whether it is its turn."""
_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS person (customer TEXT PRIMARY KEY, person TEXT) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS customers_of ON person (person);
CREATE TABLE IF NOT EXISTS history (customer TEXT, source TEXT, rows BLOB, PRIMARY KEY (customer, source)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS event (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, customer TEXT, source TEXT, row TEXT, at REAL,
    UNIQUE (customer, id));
CREATE TABLE IF NOT EXISTS consent (customer TEXT, purpose TEXT, channel TEXT, granted INTEGER, since REAL,
    PRIMARY KEY (customer, purpose, channel)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS home (customer TEXT PRIMARY KEY, timezone TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS contact (customer TEXT, at REAL, tier INTEGER, channel TEXT, answered INTEGER, decision TEXT,
    failed INTEGER DEFAULT 0, listed TEXT, came REAL, told_tier INTEGER, guessed INTEGER DEFAULT 0);
CREATE INDEX IF NOT EXISTS contact_of ON contact (customer, at);
CREATE TABLE IF NOT EXISTS spend (day TEXT, resource TEXT, used INTEGER, PRIMARY KEY (day, resource)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ledger (decision TEXT, day TEXT, resource TEXT, used INTEGER, returns INTEGER, returned INTEGER DEFAULT 0);
CREATE INDEX IF NOT EXISTS ledger_of ON ledger (decision);
CREATE TRIGGER IF NOT EXISTS ledger_adds AFTER INSERT ON ledger BEGIN
    INSERT INTO spend VALUES (NEW.day, NEW.resource, NEW.used) ON CONFLICT DO UPDATE SET used = used + excluded.used; END;
CREATE TRIGGER IF NOT EXISTS ledger_returns AFTER UPDATE OF returned ON ledger BEGIN
    UPDATE spend SET used = used + (OLD.returned - NEW.returned) * NEW.used WHERE day = NEW.day AND resource = NEW.resource; END;
CREATE TABLE IF NOT EXISTS response (customer TEXT PRIMARY KEY, at REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS planned (customer TEXT PRIMARY KEY, tier INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS decision (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, at REAL, customer TEXT, body TEXT, row BLOB);
CREATE INDEX IF NOT EXISTS decision_of ON decision (customer, number);
CREATE TRIGGER IF NOT EXISTS decisions_stay BEFORE UPDATE ON decision BEGIN SELECT raise(ABORT, 'the decision log is never changed'); END;
CREATE TRIGGER IF NOT EXISTS decisions_are_new BEFORE INSERT ON decision
    WHEN EXISTS (SELECT 1 FROM decision WHERE id = NEW.id OR number = NEW.number)
    BEGIN SELECT raise(ABORT, 'the decision log is never changed'); END;
CREATE TABLE IF NOT EXISTS outcome (decision TEXT, kind TEXT, at REAL, value REAL, PRIMARY KEY (decision, kind, at)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS due (customer TEXT, occasion TEXT, at REAL, PRIMARY KEY (customer, occasion)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS due_at ON due (at);
CREATE TABLE IF NOT EXISTS served (customer TEXT, occasion TEXT, due REAL, PRIMARY KEY (customer, occasion, due)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS asked (number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE, body TEXT, at REAL, head TEXT);
CREATE TABLE IF NOT EXISTS answered (asked INTEGER, place INTEGER, customer TEXT, told TEXT, PRIMARY KEY (asked, place)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS answered_of ON answered (customer);
CREATE TABLE IF NOT EXISTS erased (digest TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class _Column(NamedTuple):
    table: str
    name: str
    kind: str


_ADDED = (
    _Column("contact", "failed", "INTEGER DEFAULT 0"),
    _Column("contact", "listed", "TEXT"),
    _Column("contact", "came", "REAL"),
    _Column("contact", "told_tier", "INTEGER"),
    _Column("contact", "guessed", "INTEGER DEFAULT 0"),
)
"""Columns that files of an earlier version lack."""
_TABLES_WIDENED = {column.table for column in _ADDED}
_INDICES = """
CREATE UNIQUE INDEX IF NOT EXISTS contact_by ON contact (decision) WHERE decision IS NOT NULL;
CREATE INDEX IF NOT EXISTS contact_listed ON contact (listed) WHERE listed IS NOT NULL;
"""
_AT_ONCE = 500
"""Customers of one query."""
_OF_CUSTOMER = ("history", "event", "consent", "home", "contact", "response", "decision", "due", "served", "planned", "person", "answered")
_PRAGMAS = "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA secure_delete = ON; PRAGMA mmap_size = 268435456;"
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class _Connection(sqlite3.Connection):
    """Says of a file that another process holds that it is busy, whatever statement meets that."""

    file: Path

    def execute(self, *given: Any) -> sqlite3.Cursor:
        return self._told(super().execute, given)

    def executemany(self, *given: Any) -> sqlite3.Cursor:
        return self._told(super().executemany, given)

    def executescript(self, *given: Any) -> sqlite3.Cursor:
        return self._told(super().executescript, given)

    def _told(self, run: Callable[..., sqlite3.Cursor], given: tuple[Any, ...]) -> sqlite3.Cursor:
        try:
            return run(*given)
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _BUSY:
                raise
            raise StoreBusy(str(self.file), BUSY_SECONDS) from error


class SqliteStore(OnlineStore):
    """One SQLite file in WAL mode: a kill at any moment loses nothing that was answered; readers never wait."""

    def __init__(self, file: Path) -> None:
        self.file, self.urgent = file, file.with_name(f"{file.name}.urgent")
        self._local, self._of_thread = threading.local(), WeakValueDictionary[int, _Connection]()
        file.parent.mkdir(parents=True, exist_ok=True)
        self._db.executescript(_TABLES)
        self._widen()
        self._db.executescript(_INDICES)

    def _widen(self) -> None:
        """Give a file of an earlier version the columns that it lacks; of several processes one does."""
        if not self._lacking():
            return
        with self.transaction():
            for table, name, kind in self._lacking():
                self._db.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")

    def _lacking(self) -> list[_Column]:
        there = {(table, name) for table in _TABLES_WIDENED for _, name, *_ in self._db.execute(f"PRAGMA table_info({table})")}
        return [column for column in _ADDED if (column.table, column.name) not in there]

    @property
    def _db(self) -> sqlite3.Connection:
        """A connection a thread."""
        if not hasattr(self._local, "db"):
            db = sqlite3.connect(self.file, timeout=BUSY_SECONDS, isolation_level=None, cached_statements=256, factory=_Connection)
            db.file = self.file
            db.executescript(_PRAGMAS)
            self.file.chmod(0o600)
            self._local.urgent = os.fdopen(os.open(self.urgent, os.O_RDWR | os.O_CREAT, 0o600), "r+b", 0)
            self._local.db = self._of_thread[threading.get_ident()] = db
        found: sqlite3.Connection = self._local.db
        return found

    @contextmanager
    def transaction(self, urgent: bool = False) -> Iterator[None]:  # noqa: D102
        db = self._db
        with self._turn(urgent):
            db.execute("BEGIN IMMEDIATE")
            try:
                yield
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # SQLite has ended it by itself after some errors; after others it stays open, a failed COMMIT too
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def _turn(self, urgent: bool) -> Iterator[None]:
        """SQLite lets in whoever looks at the right moment: of all processes, those who are not urgent wait here for those who are.

        A courtesy, kept for `BUSY_SECONDS`: a process that was stopped in its turn holds nobody up for longer.
        """
        end = time.monotonic() + BUSY_SECONDS
        while not self._taken(fcntl.LOCK_SH if urgent else fcntl.LOCK_EX) and time.monotonic() < end:
            time.sleep(TURN_SECONDS)
        if not urgent:
            fcntl.flock(self._local.urgent, fcntl.LOCK_UN)
        try:
            yield
        finally:
            if urgent:
                fcntl.flock(self._local.urgent, fcntl.LOCK_UN)

    def _taken(self, kind: int) -> bool:
        try:
            fcntl.flock(self._local.urgent, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def interrupt(self, thread: int) -> None:  # noqa: D102
        db = self._of_thread.get(thread)
        if db is not None:
            db.interrupt()

    def give_up(self) -> None:  # noqa: D102
        db: _Connection | None = self._local.__dict__.pop("db", None)
        if db is None:
            return
        with suppress(sqlite3.Error, StoreBusy):
            if db.in_transaction:
                db.execute("ROLLBACK")
        db.close()
        self._local.urgent.close()  # and with it its place in the line

    def meta(self, key: str) -> Any:  # noqa: D102
        found = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if found is None else json.loads(found[0])

    def set_meta(self, key: str, value: Any) -> None:  # noqa: D102
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def set_persons(self, rows: Iterable[tuple[str, str]]) -> None:  # noqa: D102
        self._db.execute("DELETE FROM person")
        self._db.executemany("INSERT INTO person VALUES (?, ?)", rows)

    def who(self, customers: Sequence[str]) -> tuple[list[str], set[str]]:  # noqa: D102
        joined, gone = self._db.execute("SELECT EXISTS (SELECT 1 FROM person), EXISTS (SELECT 1 FROM erased)").fetchone()
        return self.persons(customers) if joined else list(customers), self.erased(customers) if gone else set()

    def persons(self, customers: Sequence[str]) -> list[str]:  # noqa: D102
        if self._db.execute("SELECT 1 FROM person LIMIT 1").fetchone() is None:
            return list(customers)
        found = dict(self._among("SELECT customer, person FROM person WHERE customer IN ({holes})", customers))
        return [found.get(one, one) for one in customers]

    def ids_of(self, customer: str) -> list[str]:  # noqa: D102
        return self._ids([customer])[customer]

    def _ids(self, customers: Sequence[str]) -> dict[str, list[str]]:
        """All ids of the person of each customer."""
        if self._db.execute("SELECT 1 FROM person LIMIT 1").fetchone() is None:
            return {one: [one] for one in customers}
        person = dict(zip(customers, self.persons(customers), strict=True))
        ids = {one: [one] for one in person.values()}
        for one, customer in self._among("SELECT person, customer FROM person WHERE person IN ({holes}) ORDER BY customer", list(ids)):
            ids[one].append(customer)
        return {customer: ids[one] for customer, one in person.items()}

    def _among(self, query: str, customers: Sequence[str], *more: Any) -> Iterator[Any]:
        """Rows of a query about some customers; ``more`` are its other parameters, after them."""
        for start in range(0, len(customers), _AT_ONCE):
            some = customers[start : start + _AT_ONCE]
            yield from self._db.execute(query.format(holes=",".join("?" * len(some))), (*some, *more)).fetchall()

    def put_histories(self, rows: Iterable[tuple[str, str, bytes]]) -> None:  # noqa: D102
        self._db.executemany("INSERT OR REPLACE INTO history VALUES (?, ?, ?)", rows)

    def history(self, customer: str) -> dict[str, bytes]:  # noqa: D102
        return dict(self._db.execute("SELECT source, rows FROM history WHERE customer = ?", (customer,)).fetchall())

    def add_events(self, customer: str, events: Sequence[tuple[str, str, dict[str, Any]]], now: float) -> int:  # noqa: D102
        rows = [(id, customer, source, json.dumps(row), now) for id, source, row in events]
        return self._db.executemany("INSERT OR IGNORE INTO event (id, customer, source, row, at) VALUES (?, ?, ?, ?, ?)", rows).rowcount

    def events(self, customer: str) -> list[tuple[str, dict[str, Any]]]:  # noqa: D102
        found = self._db.execute("SELECT source, row FROM event WHERE customer = ? ORDER BY number", (customer,))
        return [(source, json.loads(row)) for source, row in found]

    def set_consents(self, rows: Iterable[tuple[str, str, str, bool, float]]) -> None:  # noqa: D102
        self._db.executemany(
            """INSERT INTO consent VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET granted = excluded.granted, since = excluded.since
               WHERE excluded.since > since OR (excluded.since = since AND excluded.granted < granted)""",
            rows,
        )

    def consented_until(self, customer: str, purpose: str) -> float | None:  # noqa: D102
        found = self._among("SELECT max(since) FROM consent WHERE customer IN ({holes}) AND purpose = ?", self.ids_of(customer), purpose)
        return max((since for (since,) in found if since is not None), default=None)

    def set_timezone(self, customer: str, timezone: str) -> None:  # noqa: D102
        self._db.execute("INSERT OR REPLACE INTO home VALUES (?, ?)", (customer, timezone))

    def add_contacts(self, rows: Iterable[tuple[str, float, int, str, bool, str | None]]) -> None:  # noqa: D102
        told = "INSERT INTO contact (customer, at, tier, channel, answered, decision) VALUES (?, ?, ?, ?, ?, ?)"
        self._db.executemany(told, rows)

    def contacts(self, customers: Sequence[str] | None = None) -> list[KeptContact]:  # noqa: D102
        told = "SELECT rowid, customer, at, tier, channel, decision, listed, answered, told_tier, guessed FROM contact"
        if customers is None:
            return [KeptContact(*row) for row in self._db.execute(f"{told} ORDER BY at, rowid")]
        return [KeptContact(*row) for row in self._among(f"{told} WHERE customer IN ({{holes}}) ORDER BY at, rowid", customers)]

    def list_contacts(self, rows: Iterable[Listed], came: float | None = None) -> None:  # noqa: D102
        told = list(rows)
        self._db.executemany("DELETE FROM contact WHERE listed = ? AND decision IS NULL", [(one.id,) for one in told])
        self._db.executemany(
            "INSERT INTO contact (customer, at, tier, channel, answered, listed, came) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(one.customer, one.at, 1 if one.tier is None else one.tier, one.channel, one.answered, one.id, came) for one in told],
        )

    def match_contacts(self, rows: Iterable[tuple[int, Listed]]) -> None:  # noqa: D102
        told = "UPDATE contact SET listed = ?, at = ?, answered = max(answered, ?), told_tier = ?, guessed = ? WHERE rowid = ?"
        self._db.executemany(told, [(one.id, one.at, one.answered, one.tier, one.decision is None, number) for number, one in rows])

    def forget_contacts(self, until: float) -> None:  # noqa: D102
        self._db.execute("DELETE FROM contact WHERE decision IS NULL AND coalesce(came, ?1) <= ?1", (until,))

    def forget_events(self, until: float) -> None:  # noqa: D102
        self._db.execute("DELETE FROM event WHERE at <= ?", (until,))

    def standing(self, customers: Sequence[str], purpose: str, since: float) -> list[Standing]:  # noqa: D102
        ids = self._ids(customers)
        every = list(dict.fromkeys(id for some in ids.values() for id in some))  # two of the customers may be one person
        consents: dict[str, list[tuple[str, bool, float]]] = {}
        for id, *consent in self._among(
            "SELECT customer, channel, granted, since FROM consent WHERE customer IN ({holes}) AND purpose = ?", every, purpose
        ):
            consents.setdefault(id, []).append((consent[0], bool(consent[1]), consent[2]))
        contacts: dict[str, list[PastContact]] = {}
        told = "SELECT customer, at, tier, channel, answered FROM contact WHERE customer IN ({holes}) AND at > ? AND NOT failed"
        for id, at, tier, channel, answered in self._among(f"{told} ORDER BY at, tier", every, since):
            contacts.setdefault(id, []).append(PastContact(at, tier, channel, bool(answered)))
        zones = dict(self._among("SELECT customer, timezone FROM home WHERE customer IN ({holes})", every))
        return [self._standing(ids[one], consents, contacts, zones) for one in customers]

    @staticmethod
    def _standing(ids: Sequence[str], consents: Mapping[str, Any], contacts: Mapping[str, Any], zones: Mapping[str, str]) -> Standing:
        """Of one person: by channel the latest word of any id, of two at one moment the withdrawal."""
        if len(ids) == 1:
            (id,) = ids
            told = {channel: (granted, since) for channel, granted, since in consents.get(id, ())}
            return Standing(in_force(told), contacts.get(id, ()), zones.get(id))
        latest: dict[str, tuple[bool, float]] = {}
        for channel, granted, since in sorted((one for id in ids for one in consents.get(id, ())), key=lambda one: (one[2], not one[1])):
            latest[channel] = granted, since
        every = sorted((one for id in ids for one in contacts.get(id, ())), key=lambda one: (one.at, one.tier))
        return Standing(in_force(latest), every, next((zones[id] for id in ids if id in zones), None))

    def answer(self, customer: str, until: float) -> None:  # noqa: D102
        self._db.execute("INSERT INTO response VALUES (?, ?) ON CONFLICT DO UPDATE SET at = max(at, excluded.at)", (customer, until))
        for one in self.ids_of(customer):
            self._db.execute("UPDATE contact SET answered = 1 WHERE customer = ? AND at <= ?", (one, until))

    def answers(self, customers: Sequence[str] | None = None) -> dict[str, float]:  # noqa: D102
        if customers is None:
            return dict(self._db.execute("SELECT customer, at FROM response"))
        return dict(self._among("SELECT customer, at FROM response WHERE customer IN ({holes})", customers))

    def answer_decision(self, decision: str) -> None:  # noqa: D102
        self._db.execute("UPDATE contact SET answered = 1 WHERE decision = ?", (decision,))

    def unanswered(self) -> dict[str, float]:  # noqa: D102
        return dict(self._db.execute("SELECT customer, min(at) FROM contact WHERE NOT answered GROUP BY customer"))

    def spent(self, day: str) -> dict[str, int]:  # noqa: D102
        return dict(self._db.execute("SELECT resource, used FROM spend WHERE day = ?", (day,)).fetchall())

    def charge(self, charges: Iterable[Charge]) -> None:  # noqa: D102
        self._db.executemany("INSERT INTO ledger (decision, day, resource, used, returns) VALUES (?, ?, ?, ?, ?)", charges)

    def set_failed(self, decision: str, failed: bool) -> None:  # noqa: D102
        self._db.execute("UPDATE contact SET failed = ? WHERE decision = ?", (failed, decision))
        self._db.execute("UPDATE ledger SET returned = ? WHERE decision = ? AND returns", (failed, decision))

    def set_planned(self, rows: Iterable[tuple[str, int]]) -> None:  # noqa: D102
        self._db.execute("DELETE FROM planned")
        self._db.executemany("INSERT INTO planned VALUES (?, ?)", rows)

    def planned(self, customers: Sequence[str]) -> dict[str, int]:  # noqa: D102
        if self._db.execute("SELECT 1 FROM planned LIMIT 1").fetchone() is None:
            return {}
        return dict(self._among("SELECT customer, tier FROM planned WHERE customer IN ({holes})", customers))

    def record(self, decisions: Iterable[tuple[str, float, str, str, bytes | None]]) -> None:  # noqa: D102
        self._db.executemany("INSERT INTO decision (id, at, customer, body, row) VALUES (?, ?, ?, ?, ?)", decisions)

    def decision(self, id: str) -> tuple[str, dict[str, Any], bytes | None] | None:  # noqa: D102
        found = self._db.execute("SELECT customer, body, row FROM decision WHERE id = ?", (id,)).fetchone()
        return None if found is None else (found[0], json.loads(found[1]), found[2])

    def decisions_of(self, customer: str, limit: int) -> list[dict[str, Any]]:  # noqa: D102
        latest = "SELECT number, body FROM decision WHERE customer = ? ORDER BY number DESC LIMIT ?"
        found = [row for one in self.ids_of(customer) for row in self._db.execute(latest, (one, limit))]
        return [json.loads(body) for _, body in sorted(found, reverse=True)[:limit]]

    def feed(self, after: int, limit: int) -> list[tuple[int, str, dict[str, Any]]]:  # noqa: D102
        found = self._db.execute("SELECT number, customer, body FROM decision WHERE number > ? ORDER BY number LIMIT ?", (after, limit))
        return [(number, customer, json.loads(body)) for number, customer, body in found]

    def add_outcome(self, decision: str, kind: str, at: float, value: float | None) -> bool:  # noqa: D102
        return self._db.execute("INSERT OR IGNORE INTO outcome VALUES (?, ?, ?, ?)", (decision, kind, at, value)).rowcount > 0

    def outcomes_of(self, decision: str) -> list[dict[str, Any]]:  # noqa: D102
        found = self._db.execute("SELECT kind, at, value FROM outcome WHERE decision = ? ORDER BY at", (decision,))
        return [{"kind": kind, "at": at, "value": value} for kind, at, value in found]

    def plan_occasion(self, customer: str, occasion: str, look: float) -> None:  # noqa: D102
        earliest = "INSERT INTO due VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET at = excluded.at WHERE excluded.at < at"
        self._db.execute(earliest, (customer, occasion, look))

    def cancel_occasion(self, customer: str, occasion: str) -> None:  # noqa: D102
        ids = self.ids_of(customer)
        self._db.executemany("DELETE FROM due WHERE customer = ? AND occasion = ?", [(one, occasion) for one in ids])

    def take_due(self, now: float, limit: int, lease: float) -> list[tuple[str, str]]:  # noqa: D102
        if self._db.execute("SELECT 1 FROM due WHERE at <= ? LIMIT 1", (now,)).fetchone() is None:
            return []
        with self.transaction():
            found = self._db.execute("SELECT customer, occasion FROM due WHERE at <= ? ORDER BY at LIMIT ?", (now, limit)).fetchall()
            self._db.executemany("UPDATE due SET at = ? WHERE customer = ? AND occasion = ?", [(now + lease, *one) for one in found])
        return found

    def serve_occasion(self, customer: str, occasion: str, due: Iterable[float]) -> None:  # noqa: D102
        self._db.executemany("INSERT OR IGNORE INTO served VALUES (?, ?, ?)", [(customer, occasion, moment) for moment in due])

    def served(self, customer: str, occasion: str) -> set[float]:  # noqa: D102
        query = "SELECT due FROM served WHERE customer IN ({holes}) AND occasion = ?"
        return {due for (due,) in self._among(query, self.ids_of(customer), occasion)}

    def kept_answer(self, key: str, since: float) -> KeptAnswer | None:  # noqa: D102
        found = self._db.execute("SELECT number, body, head FROM asked WHERE key = ? AND at > ?", (key, since)).fetchone()
        if found is None:
            return None
        number, body, head = found
        rows = self._db.execute("SELECT place, customer, told FROM answered WHERE asked = ?", (number,))
        return KeptAnswer(body, head, {place: (customer, told) for place, customer, told in rows})

    def keep_answer(  # noqa: D102
        self, key: str, body: str, at: float, head: str, rows: Sequence[tuple[str | None, str]]
    ) -> None:
        self._db.execute("DELETE FROM answered WHERE asked IN (SELECT number FROM asked WHERE key = ?)", (key,))
        self._db.execute("DELETE FROM asked WHERE key = ?", (key,))
        number = self._db.execute("INSERT INTO asked (key, body, at, head) VALUES (?, ?, ?, ?)", (key, body, at, head)).lastrowid
        self._db.executemany("INSERT INTO answered VALUES (?, ?, ?, ?)", [(number, place, *row) for place, row in enumerate(rows)])

    def forget_answers(self, until: float, limit: int) -> int:  # noqa: D102
        oldest = "SELECT number, at FROM asked ORDER BY number LIMIT ?"
        (last,) = self._db.execute(f"SELECT max(number) FROM ({oldest}) WHERE at <= ?", (limit, until)).fetchone()
        if last is None:
            return 0
        old = "SELECT asked, place FROM answered WHERE asked <= ? ORDER BY asked LIMIT ?"
        gone = self._db.execute(f"DELETE FROM answered WHERE (asked, place) IN ({old})", (last, limit)).rowcount
        if gone < limit:
            gone += self._db.execute("DELETE FROM asked WHERE number <= ?", (last,)).rowcount
        return gone

    def position(self) -> int:  # noqa: D102
        return int(self._db.execute("SELECT coalesce(max(number), 0) FROM decision").fetchone()[0])

    def consents_state(self) -> tuple[float, ...]:  # noqa: D102
        consents = self._db.execute("SELECT count(*), coalesce(max(since), 0), coalesce(sum(granted), 0) FROM consent").fetchone()
        return (*consents, *self._db.execute("SELECT count(*) FROM erased").fetchone())

    def contacts_state(self) -> tuple[int, ...]:  # noqa: D102
        return tuple(self._db.execute("SELECT count(*), coalesce(max(rowid), 0), coalesce(sum(failed), 0) FROM contact").fetchone())

    def known(self) -> set[str]:  # noqa: D102
        tables = ("consent", "contact", "home")
        found = {one for table in tables for (one,) in self._db.execute(f"SELECT DISTINCT customer FROM {table}")}
        pairs = self._db.execute("SELECT customer, person FROM person").fetchall()
        persons = {person for customer, person in pairs if customer in found or person in found}
        return found | persons | {customer for customer, person in pairs if person in persons}

    def knows(self, customers: Sequence[str]) -> set[str]:  # noqa: D102
        places = (*((table, "customer") for table in _OF_CUSTOMER if table != "answered"), ("person", "person"))
        anywhere = " OR ".join(f"EXISTS (SELECT 1 FROM {table} WHERE {column} = ?1)" for table, column in places)
        found = {one for one in customers if self._db.execute(f"SELECT {anywhere}", (one,)).fetchone()[0]}
        return found | self.erased(customers)

    def fresh(self, customers: Sequence[str]) -> set[str]:  # noqa: D102
        told = "SELECT 1 FROM event WHERE customer = ? LIMIT 1"
        return {one for one, ids in self._ids(customers).items() if any(self._db.execute(told, (id,)).fetchone() for id in ids)}

    def erased(self, customers: Sequence[str]) -> set[str]:  # noqa: D102
        if self._db.execute("SELECT 1 FROM erased LIMIT 1").fetchone() is None:
            return set()
        gone = {digest for (digest,) in self._db.execute("SELECT digest FROM erased")} if len(customers) > _AT_ONCE else None
        if gone is not None:
            return {one for one in customers if subject(one) in gone}
        return {one for one in customers if self._db.execute("SELECT 1 FROM erased WHERE digest = ?", (subject(one),)).fetchone()}

    def erase(self, customer: str) -> list[str]:  # noqa: D102
        with self.transaction(urgent=True):
            ids = self.ids_of(customer)
            for one in ids:
                self._db.execute("UPDATE ledger SET decision = NULL WHERE decision IN (SELECT id FROM decision WHERE customer = ?)", (one,))
                self._db.execute("DELETE FROM outcome WHERE decision IN (SELECT id FROM decision WHERE customer = ?)", (one,))
                self._db.execute("INSERT OR IGNORE INTO erased VALUES (?)", (subject(one),))
                for table in _OF_CUSTOMER:
                    self._db.execute(f"DELETE FROM {table} WHERE customer = ?", (one,))
        emptied(self._db)
        return ids


def emptied(db: sqlite3.Connection) -> bool:
    """Whether the log ahead of a file, which holds old pages, was emptied: not while anybody reads or writes.

    Never waits: SQLite lets nobody write while it waits for readers here.
    """
    db.execute("PRAGMA busy_timeout = 0")
    try:
        return not db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    finally:
        db.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")
