"""Opt-out and erasure hold, whatever name, place and encoding a caller chooses: sequences of calls against the real application."""

import json
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from serving.erase import asked
from tests.serving.conftest import Served

TEMPLATES = ("EU/{}", "{}", "Å-é {}", "per%20cent{}", "a?b={}#c", "..{}", "007{}", "{}+{}", "Zoë/../{}\\", "%2F{}")
"""Ids of the shop, the number of the person in each."""
WHITE_SPACE = (("", ""), (" ", " "), ("\u200b", "\n"), ("\ufeff", "\u3000"))
MOST = 1100
ERASED_SECONDS = 60.0


def id_of(number: int, second: bool = False) -> str:
    """The shop's own id of a person; ``second``: the other account."""
    return TEMPLATES[number % len(TEMPLATES)].format(*[f"{7_000_000 + number}"] * 2) + ("/b" if second else "")


@pytest.fixture(scope="module")
def people(served: Served) -> Iterator[int]:
    """Numbers of persons, each once. Every second is in a file of the home, of which the service knows nothing."""
    ids = [served.pseudonym(id_of(number)) for number in range(1, MOST, 2)]
    (served.home / "datasets").mkdir()
    pq.write_table(pa.table({"customer_id": ids, "amount": [1.0] * len(ids)}), served.home / "datasets" / "part.parquet")
    return iter(range(MOST))


WRITTEN = st.tuples(st.sampled_from(WHITE_SPACE), st.sampled_from(("NFC", "NFD")), st.booleans())
"""How an id is written: white space around it, Unicode's form, as a decimal where it is a number."""
NAME = st.tuples(st.sampled_from(("first", "second", "first's pseudonym", "second's pseudonym")), WRITTEN)
WHERE = st.sampled_from(("path", "path, every byte encoded", "body", "body, escaped", "body, as a pseudonym"))
CALL = st.tuples(st.sampled_from(("opt out", "opt out", "opt in", "decide", "decide", "event", "profile", "erase")), NAME, WHERE)


@dataclass
class Person:
    """One person behind two ids, and what should be known of the person."""

    served: Served
    number: int
    out: bool = False
    erased: bool = False
    events: int = 0

    def __post_init__(self) -> None:
        self.ids = {"first": id_of(self.number), "second": id_of(self.number, second=True)}
        self.pseudonyms = {name: self.served.pseudonym(id) for name, id in self.ids.items()}
        self.served.store.set_persons([(self.pseudonyms["second"], self.pseudonyms["first"])])

    def text(self, name: tuple[str, Any]) -> str:
        """The person's name as a caller writes it."""
        which, ((before, after), form, decimal) = name
        key = which.removesuffix("'s pseudonym")
        if key != which:
            return f"{before}{self.pseudonyms[key]}{after}"
        plain = self.ids[key] + (".0" if decimal and self.ids[key].isdigit() else "")
        return before + unicodedata.normalize(form, plain) + after

    def ask(self, what: str, name: tuple[str, Any], where: str, body: dict[str, Any] | None) -> httpx.Response:
        """One call about the person, in a path or in a body."""
        text, client = self.text(name), self.served.client
        if where.startswith("path"):
            encoded = "".join(f"%{byte:02x}" for byte in text.encode()) if "every" in where else quote(text, safe="")
            method, end = {"profile": ("GET", ""), "erasure": ("DELETE", ""), "consents": ("PUT", "/consents")}[what]
            return client.request(method, f"/v1/customers/{encoded}{end}", json=body)
        by = {"pseudonym": text.strip()} if "as a" in where and "pseudonym" in name[0] else {"customer_id": text}
        by = {"pseudonym": self.pseudonyms[name[0].split("'")[0]]} if "pseudonym" in by else by
        told = json.dumps({**by, **(body or {})}, ensure_ascii="escaped" in where).encode()
        return client.post(f"/v1/customers/{what}", content=told, headers={"Content-Type": "application/json"})

    def opt(self, name: Any, where: str, granted: bool) -> None:
        answer = self.ask("consents", name, where, {"consents": [{"granted": granted}]})
        assert answer.status_code == (404 if self.erased else 200), answer.text
        self.out = self.out if self.erased else not granted

    def decide(self, name: Any, where: str) -> None:
        asked = {"customers": [{"customer_id": self.text(name)}]}
        answer = self.served.client.post("/v1/decisions", json=asked)
        assert answer.status_code == 200, answer.text
        (told,) = answer.json()["results"]
        assert (told["status"] == "scored") == (self.events > 0 and not self.erased), told
        if told["status"] == "scored" and self.out:
            assert (told["tier"], told["channel"], told["consent"]) == ("none", None, "denied")

    def event(self, name: Any, where: str) -> None:
        self.events += 0 if self.erased else 1
        row = {"order_id": f"o-{self.number}-{self.events}", "ordered_at": datetime.now(UTC).isoformat(), "amount": 50.0}
        event = {"event_id": f"e-{self.events}", "customer_id": self.text(name), "table": "orders", "row": row}
        counts = self.served.client.post("/v1/events", json={"events": [event]}).json()
        expected = "accepted" if not self.erased else "erased"
        assert {kind: count for kind, count in counts.items() if count} == {expected: 1}

    def profile(self, name: Any, where: str) -> None:
        answer = self.ask("profile", name, where, None)
        assert answer.status_code == (404 if self.erased else 200), answer.text

    def erase(self, name: Any, where: str) -> None:
        answer = self.ask("erasure", name, where, None)
        assert answer.status_code == (404 if self.erased else 200), answer.text
        self.erased = True

    def step(self, what: str, name: Any, where: str) -> None:
        if what.startswith("opt"):
            self.opt(name, where, what == "opt in")
        else:
            getattr(self, what)(name, where)


def hold(served: Served, people: Iterator[int], examples: int) -> None:
    """Opt-out and erasure hold in every sequence; afterwards nothing of the erased is found."""
    erased: list[int] = []

    @seed(11)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(CALL, min_size=2, max_size=7))
    def sequence(calls: list[Any]) -> None:
        person = Person(served, next(people))
        for what, name, where in calls:
            person.step(what, name, where)
        person.decide(("first", (("", ""), "NFC", False)), "body")
        erased.extend([person.number] * person.erased)

    sequence()
    assert len(erased) > examples / 20
    end = time.monotonic() + ERASED_SECONDS
    while asked(served.home) and time.monotonic() < end:
        time.sleep(0.3)
    assert found(served, erased) == set()


def found(served: Served, erased: list[int]) -> set[str]:
    """Files of the home that hold anything of an erased person: the store and its log, the audit, the tables."""
    texts = {file: file.read_bytes() for file in served.home.rglob("*") if file.is_file()}
    tables = {file: "\n".join(pq.read_table(file)["customer_id"].to_pylist()).encode() for file in texts if file.suffix == ".parquet"}
    ids = [id_of(number, second) for number in erased for second in (False, True)]
    plants = [one.encode() for id in ids for one in (served.pseudonym(id), id)]
    return {str(file) for told in (texts, tables) for file, text in told.items() if any(plant in text for plant in plants)}


def test_opt_out_and_erasure_hold_in_any_sequence_of_calls(served: Served, people: Iterator[int]) -> None:
    hold(served, people, 60)


@pytest.mark.slow
def test_opt_out_and_erasure_hold_in_a_thousand_sequences(served: Served, people: Iterator[int]) -> None:
    hold(served, people, 1000)


STRANGER = "0123456789abcdef0123456789abcdef"


def test_a_pseudonym_that_nobody_knows_is_nobodys(served: Served) -> None:
    """Not an id to make another pseudonym of."""
    client, table = served.client, {"consents": [{"granted": False}]}
    for text in (STRANGER, f" {STRANGER}\n"):
        told = [client.get(f"/v1/customers/{quote(text)}"), client.delete(f"/v1/customers/{quote(text)}")]
        told += [client.put(f"/v1/customers/{quote(text)}/consents", json=table)]
        told += [client.post(f"/v1/customers/{what}", json={"customer_id": text}) for what in ("profile", "consents", "erasure")]
        told += [client.post(f"/v1/customers/{what}", json={"pseudonym": STRANGER}) for what in ("profile", "consents", "erasure")]
        assert {answer.status_code for answer in told} == {404}
        for place in ("/v1/score", "/v1/decisions"):
            (one,) = client.post(place, json={"customers": [{"customer_id": text}]}).json()["results"]
            assert (one["status"], one["pseudonym"]) == ("unknown", STRANGER)
    event = {"event_id": "e", "customer_id": STRANGER, "table": "reviews", "row": {"review_id": "r", "reviewed_at": "2024-01-01T00:00:00"}}
    assert client.post("/v1/events", json={"events": [event]}).json()["unknown"] == 1
    assert served.store.knows([STRANGER, served.pseudonym(STRANGER)]) == set()


def test_an_unknown_id_may_opt_out_before_it_comes_and_is_404_else(served: Served) -> None:
    client = served.client
    assert client.get("/v1/customers/nobody%20yet").status_code == client.delete("/v1/customers/nobody%20yet").status_code == 404
    assert client.put("/v1/customers/nobody%20yet/consents", json={"consents": [{"granted": False}]}).status_code == 200
    assert client.get("/v1/customers/nobody%20yet").json()["consents"] == {"": False}


def test_two_ways_to_write_an_id_are_one_customer_of_a_request(served: Served) -> None:
    for one, other in (("12", " 12.0"), ("é", "e\u0301"), ("x", "\u200bx")):
        for place in ("/v1/score", "/v1/decisions"):
            answer = served.client.post(place, json={"customers": [{"customer_id": one}, {"customer_id": other}]})
            assert (answer.status_code, answer.json()["errors"][0]["rule"]) == (422, "unique")


@pytest.mark.parametrize("text", [" ", "\u200b\ufeff", "\n\t", ""])
def test_a_blank_id_is_none(served: Served, text: str) -> None:
    body = {"customer_id": text, "consents": [{"granted": False}]}
    assert served.client.post("/v1/customers/consents", json=body).status_code == 422
    assert served.client.post("/v1/score", json={"customers": [{"customer_id": text}]}).status_code == 422
    assert served.client.get(f"/v1/customers/{quote(text)}").status_code in (404, 422)


@pytest.mark.parametrize("body", [{}, {"customer_id": "a", "pseudonym": STRANGER}, {"pseudonym": "a"}, {"customer_id": None}])
def test_a_body_names_its_customer_exactly_once(served: Served, body: dict[str, Any]) -> None:
    assert {served.client.post(f"/v1/customers/{what}", json=body).status_code for what in ("profile", "consents", "erasure")} == {422}


@settings(max_examples=60, deadline=None, database=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128).filter(lambda text: text.strip("\u200b\ufeff").strip())
)
def test_whatever_id_a_body_takes_a_path_takes(served: Served, text: str) -> None:
    told = served.client.post("/v1/customers/consents", json={"customer_id": text, "consents": [{"granted": False}]})
    if told.status_code == 200:
        answer = served.client.put(f"/v1/customers/{quote(text, safe='').replace('.', '%2E')}/consents", json={"consents": []})
        assert (answer.status_code, answer.json()["pseudonym"]) == (200, told.json()["pseudonym"])
        assert answer.json()["consents"] == {"": False}
    else:
        assert told.status_code == 422


def test_a_path_that_is_not_utf_8_is_refused(served: Served) -> None:
    assert served.client.get("/v1/customers/%FF%FE").status_code == 422
