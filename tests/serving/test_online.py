"""What every online store does, told once in `OnlineStoreTests`, which each kind of store joins; and SQLite's own promises."""

import fcntl
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from serving import sqlite_store
from serving.audit import subject
from serving.online import Charge, OnlineStore, PastContact, StoreBusy
from serving.sqlite_store import SqliteStore
from tests.conftest import ROOT

MAIL, SMS = "e-mail", "sms"
ROW = {"order_id": "o1", "ordered_at": "2026-01-01T00:00:00"}


class OnlineStoreTests:
    """Join by a fixture ``store`` that gives an empty store."""

    def test_what_is_not_there_is_empty(self, store: OnlineStore) -> None:
        assert store.meta("x") is None
        assert (store.history("a"), store.events("a"), store.spent("d"), store.feed(0, 9)) == ({}, [], {}, [])
        assert (store.decision("x"), store.decisions_of("a", 9), store.outcomes_of("x")) == (None, [], [])
        (standing,) = store.standing(["a"], "marketing", 0)
        assert (standing.consents, list(standing.contacts), standing.timezone) == ({}, [], None)
        assert (store.position(), store.known(), store.fresh(["a"]), store.erased(["a"])) == (0, set(), set(), set())

    def test_an_exception_undoes_the_whole_transaction(self, store: OnlineStore) -> None:
        store.charge([Charge(None, "d", "budget", 5)])
        with pytest.raises(RuntimeError), store.transaction():  # noqa: PT012
            store.charge([Charge(None, "d", "budget", 7)])
            store.record([("id", 1.0, "a", "{}", None)])
            store.add_contacts([("a", 1.0, 1, MAIL, False, "id")])
            raise RuntimeError
        assert (store.spent("d"), store.position(), store.known()) == ({"budget": 5}, 0, set())

    def test_threads_wait_for_each_others_transactions(self, store: OnlineStore) -> None:
        def add() -> None:
            for _ in range(50):
                with store.transaction():
                    store.set_meta("number", (store.meta("number") or 0) + 1)

        threads = [threading.Thread(target=add) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert store.meta("number") == 400

    def test_histories_are_kept_by_customer_and_table_the_latest_load_counts(self, store: OnlineStore) -> None:
        store.put_histories([("a", "orders", b"1"), ("a", "tickets", b"2"), ("b", "orders", b"3")])
        store.put_histories([("a", "orders", b"4")])
        assert store.history("a") == {"orders": b"4", "tickets": b"2"}

    def test_what_is_known_of_any_id_is_the_persons_while_the_link_holds(self, store: OnlineStore) -> None:
        store.add_events("b", [("e1", "orders", ROW)], 1.0)
        store.set_consents([("a", "marketing", SMS, True, 5.0), ("b", "marketing", SMS, False, 6.0), ("b", "marketing", MAIL, True, 1.0)])
        store.set_consents([("a", "marketing", "call", True, 2.0), ("c", "marketing", "call", False, 2.0)])
        store.set_timezone("b", "Asia/Tokyo")
        store.add_contacts([("b", 3.0, 1, SMS, False, None), ("a", 1.0, 2, MAIL, False, None)])
        store.record([("1", 1.0, "a", '{"n": 1}', None), ("2", 2.0, "b", '{"n": 2}', None)])
        assert (store.persons(["b"]), store.fresh(["a"]), len(store.decisions_of("a", 9))) == (["b"], set(), 1)
        store.set_persons([("b", "a"), ("c", "a")])
        assert (store.persons(["c", "x", "a", "b"]), store.ids_of("b"), store.ids_of("x")) == (["a", "x", "a", "a"], ["a", "b", "c"], ["x"])
        assert (store.fresh(["a", "c", "x"]), store.known()) == ({"a", "c"}, {"a", "b", "c"})
        for one in store.standing(["a", "b", "c"], "marketing", 0):
            assert one.consents == {SMS: False, MAIL: True, "call": False}  # of two words at one moment the withdrawal
            assert (one.timezone, [contact.at for contact in one.contacts]) == ("Asia/Tokyo", [1.0, 3.0])
        store.answer("c", 2.0)
        assert [contact.answered for contact in store.standing(["b"], "marketing", 0)[0].contacts] == [True, False]
        assert [one["n"] for one in store.decisions_of("c", 1)] == [2]
        store.set_persons([])
        assert (store.standing(["a"], "marketing", 0)[0].consents, store.fresh(["a"])) == ({SMS: True, "call": True}, set())

    def test_two_ids_of_a_person_far_apart_in_a_list_count_each_contact_once(self, store: OnlineStore) -> None:
        store.set_persons([("b", "a")])
        store.add_contacts([("b", 3.0, 1, SMS, False, None)])
        found = store.standing(["a", *(f"c{n}" for n in range(1200)), "b"], "marketing", 0)
        assert [len(one.contacts) for one in (found[0], found[-1], found[1])] == [1, 1, 0]

    def test_an_erasure_by_any_id_takes_all(self, store: OnlineStore) -> None:
        store.set_persons([("b", "a"), ("c", "a")])
        store.set_consents([("a", "marketing", SMS, True, 5.0), ("b", "marketing", SMS, False, 6.0)])
        assert store.erase("c") == ["a", "b", "c"]
        assert (store.persons(["b"]), store.erased(["a", "b", "c", "x"]), store.known()) == (["b"], {"a", "b", "c"}, set())
        assert store.who(["x", "b"]) == (["x", "b"], {"b"})

    def test_an_event_told_again_changes_nothing(self, store: OnlineStore) -> None:
        assert store.add_events("a", [("e1", "orders", ROW), ("e2", "tickets", {})], 1.0) == 2
        assert store.add_events("a", [("e1", "orders", {"other": 1}), ("e3", "returns", {})], 2.0) == 1
        assert store.events("a") == [("orders", ROW), ("tickets", {}), ("returns", {})]
        assert store.add_events("b", [("e1", "orders", {})], 3.0) == 1  # another customer's event of the same id is another event
        assert store.fresh(["a", "b", "c"]) == {"a", "b"}

    def test_events_come_back_in_the_order_they_came(self, store: OnlineStore) -> None:
        for number, id in enumerate(("z", "m", "a")):
            store.add_events("a", [(id, "events", {"number": number})], float(number))
        assert [row["number"] for _, row in store.events("a")] == [0, 1, 2]

    def test_events_of_one_request_keep_their_order(self, store: OnlineStore) -> None:
        store.add_events("a", [("e-9", "events", {"number": 0}), ("e-10", "events", {"number": 1})], 1.0)
        assert [row["number"] for _, row in store.events("a")] == [0, 1]

    def test_forgetting_events_leaves_what_came_later(self, store: OnlineStore) -> None:
        store.add_events("a", [("e1", "orders", {"n": 1})], 1.0)
        store.add_events("a", [("e2", "orders", {"n": 2})], 2.0)
        store.forget_events(1.0)
        assert store.events("a") == [("orders", {"n": 2})]

    def test_the_newest_word_on_a_consent_counts_however_late_an_older_one_is_told(self, store: OnlineStore) -> None:
        store.set_consents([("a", "marketing", SMS, False, 20.0)])
        store.set_consents([("a", "marketing", SMS, True, 10.0), ("a", "profiling", SMS, True, 30.0)])
        assert store.standing(["a"], "marketing", 0)[0].consents == {SMS: False}
        store.set_consents([("a", "marketing", SMS, True, 21.0)])
        assert store.standing(["a"], "marketing", 0)[0].consents == {SMS: True}

    def test_of_two_words_at_one_moment_the_withdrawal_wins_in_either_order(self, store: OnlineStore) -> None:
        for name, words in (("a", (True, False)), ("b", (False, True))):
            for granted in words:
                store.set_consents([(name, "marketing", SMS, granted, 20.0)])
        store.set_consents([("c", "marketing", SMS, True, 20.0), ("c", "marketing", "", False, 20.0), ("c", "marketing", MAIL, True, 20.5)])
        store.set_consents([("d", "marketing", SMS, False, 20.0), ("d", "marketing", "", True, 20.0)])
        found = [one.consents for one in store.standing(["a", "b", "c", "d"], "marketing", 0)]
        assert found == [{SMS: False}, {SMS: False}, {"": False, MAIL: True}, {SMS: False, "": True}]

    def test_whoever_anything_is_kept_of_is_known_and_who_was_erased(self, store: OnlineStore) -> None:
        store.put_histories([("h", "orders", b"1")])
        store.add_events("e", [("e1", "orders", ROW)], 1.0)
        store.set_consents([("c", "marketing", SMS, True, 1.0)])
        store.set_timezone("z", "Asia/Tokyo")
        store.add_contacts([("k", 1.0, 1, SMS, False, None)])
        store.record([("id", 1.0, "d", "{}", None)])
        store.set_persons([("other", "own")])
        store.erase("x")
        assert store.knows([*"heczkdx", "own", "other", "nobody"]) == {*"heczkdx", "own", "other"}

    def test_a_word_for_any_channel_overrules_older_words_for_one(self, store: OnlineStore) -> None:
        store.set_consents([("a", "marketing", SMS, True, 10.0), ("a", "marketing", MAIL, True, 30.0), ("a", "marketing", "", False, 20.0)])
        assert store.standing(["a"], "marketing", 0)[0].consents == {"": False, MAIL: True}

    def test_standing_tells_contacts_since_a_moment_oldest_first_for_customers_in_order(self, store: OnlineStore) -> None:
        store.add_contacts([("a", 3.0, 2, SMS, False, "x"), ("a", 1.0, 1, MAIL, True, None), ("b", 2.0, 3, "call", False, None)])
        store.set_timezone("b", "Asia/Tokyo")
        b, nobody, a = store.standing(["b", "c", "a"], "marketing", 1.0)
        assert list(a.contacts) == [PastContact(3.0, 2, SMS, False)]
        assert (list(b.contacts), b.timezone) == ([PastContact(2.0, 3, "call", False)], "Asia/Tokyo")
        assert list(nobody.contacts) == []
        assert [one.at for one in store.standing(["a"], "marketing", 0.0)[0].contacts] == [1.0, 3.0]

    def test_standing_of_thousands_at_once(self, store: OnlineStore) -> None:
        names = [f"c{number}" for number in range(2345)]
        store.set_consents((name, "marketing", "", int(name[1:]) % 3 == 0, 1.0) for name in names)
        found = store.standing(names, "marketing", 0)
        assert [one.consents[""] for one in found] == [number % 3 == 0 for number in range(2345)]
        assert store.known() == set(names)

    def test_an_answer_marks_contacts_up_to_its_moment(self, store: OnlineStore) -> None:
        store.add_contacts([("a", 1.0, 1, MAIL, False, None), ("a", 3.0, 1, MAIL, False, None), ("b", 1.0, 1, MAIL, False, None)])
        store.answer("a", 2.0)
        a, b = store.standing(["a", "b"], "marketing", 0.0)
        assert ([one.answered for one in a.contacts], [one.answered for one in b.contacts]) == ([True, False], [False])

    def test_a_new_load_forgets_the_batchs_contacts_and_keeps_our_own(self, store: OnlineStore) -> None:
        store.add_contacts([("a", 1.0, 1, MAIL, False, None), ("a", 2.0, 2, SMS, False, "ours")])
        store.forget_contacts(9.0)
        assert [one.channel for one in store.standing(["a"], "marketing", 0)[0].contacts] == [SMS]

    def test_a_days_use_adds_up_by_resource(self, store: OnlineStore) -> None:
        used = (("d", "budget", 5), ("d", "budget", 7), ("d", "concierge", 2), ("e", "budget", 1))
        store.charge(Charge(f"id{number}", *one) for number, one in enumerate(used))
        assert (store.spent("d"), store.spent("e")) == ({"budget": 12, "concierge": 2}, {"budget": 1})

    def test_the_feed_gives_decisions_in_the_order_of_the_log(self, store: OnlineStore) -> None:
        store.record((f"id{number}", float(-number), "ab"[number % 2], f'{{"n": {number}}}', None) for number in range(7))
        assert [body["n"] for _, _, body in store.feed(0, 100)] == list(range(7))
        first = store.feed(0, 3)
        rest = store.feed(first[-1][0], 100)
        assert [body["n"] for _, _, body in (*first, *rest)] == list(range(7))
        assert store.position() == rest[-1][0]
        assert [body["n"] for body in store.decisions_of("a", 2)] == [6, 4]

    def test_a_decision_keeps_its_row_of_features(self, store: OnlineStore) -> None:
        store.record([("id", 1.0, "a", '{"tier": "nudge"}', b"\x00\xff")])
        assert store.decision("id") == ("a", {"tier": "nudge"}, b"\x00\xff")

    def test_the_same_id_is_never_logged_twice(self, store: OnlineStore) -> None:
        store.record([("id", 1.0, "a", "{}", None)])
        with pytest.raises(sqlite3.IntegrityError), store.transaction():
            store.record([("other", 1.0, "a", "{}", None), ("id", 2.0, "a", "{}", None)])
        assert store.position() == 1

    def test_outcomes_told_again_are_known(self, store: OnlineStore) -> None:
        assert store.add_outcome("id", "responded", 5.0, 20.0)
        assert not store.add_outcome("id", "responded", 5.0, 20.0)
        assert store.add_outcome("id", "delivered", 4.0, None)
        assert [(one["kind"], one["value"]) for one in store.outcomes_of("id")] == [("delivered", None), ("responded", 20.0)]

    def test_what_is_due_is_leased_to_the_first_who_asks(self, store: OnlineStore) -> None:
        store.plan_occasion("a", "cart_left", 10.0)
        store.plan_occasion("b", "silent_90d", 20.0)
        assert store.take_due(9.0, 10, 30.0) == []
        assert store.take_due(10.0, 10, 30.0) == [("a", "cart_left")]
        assert store.take_due(39.0, 10, 30.0) == [("b", "silent_90d")]
        assert store.take_due(40.0, 10, 30.0) == [("a", "cart_left")]  # whoever took it has died
        store.cancel_occasion("a", "cart_left")
        assert store.take_due(69.0, 10, 30.0) == [("b", "silent_90d")]

    def test_of_two_looks_planned_the_earlier_stays_and_the_earliest_come_first(self, store: OnlineStore) -> None:
        for name, look in (("a", 30.0), ("a", 40.0), ("b", 50.0), ("b", 20.0), ("c", 25.0)):
            store.plan_occasion(name, "cart_left", look)
        assert store.take_due(15.0, 10, 99.0) == []
        assert [name for name, _ in store.take_due(45.0, 2, 99.0)] == ["b", "c"]
        assert [name for name, _ in store.take_due(45.0, 2, 99.0)] == ["a"]

    def test_an_occasion_is_the_persons_under_whichever_id_it_was_planned(self, store: OnlineStore) -> None:
        for name in "ab":
            store.plan_occasion(name, "cart_left", 10.0)
            store.plan_occasion(name, "silent_90d", 10.0)
        store.set_persons([("b", "a")])
        store.cancel_occasion("a", "cart_left")
        assert store.take_due(15.0, 10, 99.0) == [("a", "silent_90d"), ("b", "silent_90d")]
        store.serve_occasion("a", "silent_90d", [3.0])
        store.serve_occasion("b", "silent_90d", [3.0, 4.5])
        assert (store.served("b", "silent_90d"), store.served("b", "cart_left"), store.served("c", "silent_90d")) == (
            {3.0, 4.5},
            set(),
            set(),
        )
        store.erase("b")
        assert (store.served("a", "silent_90d"), store.take_due(1e12, 10, 1.0)) == (set(), [])

    def test_an_erased_customer_is_gone_from_everywhere_and_nobody_else_is(self, store: OnlineStore) -> None:
        for name in ("a", "b"):
            fill(store, name)
        store.erase("a")
        assert (store.history("a"), store.events("a"), store.decisions_of("a", 9), store.outcomes_of("id-a")) == ({}, [], [], [])
        assert store.decision("id-a") is None
        (gone,) = store.standing(["a"], "marketing", 0)
        assert (gone.consents, list(gone.contacts), gone.timezone) == ({}, [], None)
        assert store.erased(["a", "b"]) == {"a"}
        assert store.take_due(1e12, 10, 1.0) == [("b", "cart_left")]
        assert (len(store.history("b")), len(store.events("b")), len(store.decisions_of("b", 9)), len(store.outcomes_of("id-b"))) == (
            1,
        ) * 4


def fill(store: OnlineStore, name: str) -> None:
    """Something of a customer in every table."""
    store.put_histories([(name, "orders", name.encode() * 50)])
    store.add_events(name, [("e", "orders", {"note": name})], 1.0)
    store.set_consents([(name, "marketing", SMS, True, 1.0)])
    store.set_timezone(name, "Asia/Tokyo")
    store.add_contacts([(name, 1.0, 1, SMS, False, f"id-{name}")])
    store.record([(f"id-{name}", 1.0, name, f'{{"pseudonym": "{name}"}}', name.encode())])
    store.add_outcome(f"id-{name}", "responded", 1.0, None)
    store.plan_occasion(name, "cart_left", 1.0)
    store.serve_occasion(name, "cart_left", [0.5])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "online.db"


class TestSqliteStore(OnlineStoreTests):
    @pytest.fixture
    def store(self, file: Path) -> OnlineStore:
        return SqliteStore(file)

    def test_events_of_one_request_keep_their_order(self, store: OnlineStore) -> None:
        super().test_events_of_one_request_keep_their_order(store)


@pytest.fixture
def child(file: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, in the middle of a transaction on the same file."""
    code = f"""
import sys, time
from pathlib import Path
from serving.online import Charge
from serving.sqlite_store import SqliteStore
store = SqliteStore(Path({str(file)!r}))
with store.transaction():
    store.charge([Charge(None, "d", "budget", 7)])
    print("in", flush=True)
    sys.stdin.readline()
print("out", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    yield process
    process.kill()
    process.communicate()


def test_another_process_waits_for_a_transaction_and_sees_nothing_of_it_before(file: Path, child: subprocess.Popen[str]) -> None:
    store, done = SqliteStore(file), []
    assert store.spent("d") == {}

    def spend() -> None:
        with store.transaction():
            done.append(store.spent("d"))
            store.charge([Charge(None, "d", "budget", 5)])

    thread = threading.Thread(target=spend)
    thread.start()
    time.sleep(0.3)
    assert done == []
    child.stdin.write("\n")  # type: ignore[union-attr]
    child.stdin.flush()  # type: ignore[union-attr]
    thread.join()
    assert (done, store.spent("d")) == ([{"budget": 7}], {"budget": 12})


def test_a_process_killed_in_a_transaction_leaves_nothing_of_it(file: Path, child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    store = SqliteStore(file)
    store.charge([Charge(None, "d", "budget", 1)])
    assert store.spent("d") == {"budget": 1}


def test_a_commit_that_fails_leaves_the_store_writable(file: Path) -> None:
    store = SqliteStore(file)
    store._db.executescript("PRAGMA foreign_keys = ON; CREATE TABLE one (id INTEGER PRIMARY KEY);")
    store._db.execute("CREATE TABLE other (one INTEGER REFERENCES one DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(sqlite3.IntegrityError), store.transaction():  # noqa: PT012
        store.set_meta("x", 1)
        store._db.execute("INSERT INTO other VALUES (1)")
    with store.transaction():
        store.set_meta("y", 2)
    assert (store.meta("x"), SqliteStore(file).meta("y")) == (None, 2)


def test_only_a_store_that_is_busy_is_called_so(file: Path, child: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "BUSY_SECONDS", 0.1)
    store = SqliteStore(file)
    with pytest.raises(StoreBusy), store.transaction():
        pass
    store._db.execute("PRAGMA query_only = ON")
    child.kill()
    child.wait()
    with pytest.raises(sqlite3.OperationalError, match="readonly"), store.transaction():
        store.set_meta("x", 1)


@pytest.mark.parametrize(("held", "urgent"), [(fcntl.LOCK_SH, False), (fcntl.LOCK_EX, True)])
def test_a_stopped_process_holds_nobody_up_for_ever(file: Path, monkeypatch: pytest.MonkeyPatch, held: int, urgent: bool) -> None:
    monkeypatch.setattr(sqlite_store, "BUSY_SECONDS", 0.2)
    store = SqliteStore(file)

    def write() -> None:
        with store.transaction(urgent):
            store.set_meta("x", 1)

    with store.urgent.open("r+b") as stopped:
        fcntl.flock(stopped, held)
        thread = threading.Thread(target=write)
        thread.start()
        thread.join(10)
        assert store.meta("x") == 1
    thread.join()


def test_the_decision_log_is_never_changed(file: Path) -> None:
    SqliteStore(file).record([("id", 1.0, "a", '{"tier": "none"}', None)])
    with closing(sqlite3.connect(file)) as db:
        for change in ("body = '{}'", "customer = 'b'", "at = 2", "number = 9", "row = x'00'"):
            with pytest.raises(sqlite3.IntegrityError, match="the decision log is never changed"):
                db.execute(f"UPDATE decision SET {change}")
        with pytest.raises(sqlite3.IntegrityError, match="the decision log is never changed"):
            db.execute("INSERT INTO decision (id, body) VALUES ('id', '{}') ON CONFLICT DO UPDATE SET body = '{}'")
    assert SqliteStore(file).decision("id") == ("a", {"tier": "none"}, None)


def test_a_decision_is_not_replaced(file: Path) -> None:
    SqliteStore(file).record([("id", 1.0, "a", '{"tier": "none"}', None)])
    with closing(sqlite3.connect(file)) as db, pytest.raises(sqlite3.IntegrityError):
        db.execute("INSERT OR REPLACE INTO decision (number, id, body) VALUES (1, 'id', '{}')")


def on_disk(file: Path) -> bytes:
    """Every byte of the store's files: the database, its log ahead and the index of that."""
    return b"".join(path.read_bytes() for path in sorted(file.parent.glob(f"{file.name}*")))


def test_erasure_leaves_no_byte_of_the_pseudonym_on_the_disk(file: Path) -> None:
    store, name = SqliteStore(file), "0123456789abcdef0123456789abcdef"
    for number in range(300):  # so that pages are split, freed and used again
        fill(store, f"{number:032x}")
    fill(store, name)
    for number in range(300, 600):
        fill(store, f"{number:032x}")
    assert name.encode() in on_disk(file)
    store.erase(name)
    left = on_disk(file)
    assert name.encode() not in left
    assert name[:16].encode() not in left
    assert subject(name).encode() in left
    assert f"{5:032x}".encode() in left


def test_only_the_owner_may_read_the_file(file: Path) -> None:
    fill(SqliteStore(file), "a")
    assert {oct(path.stat().st_mode & 0o777) for path in file.parent.glob(f"{file.name}*")} == {"0o600"}
    assert os.stat(file).st_uid == os.getuid()
