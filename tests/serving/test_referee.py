"""The referee itself, against cases worked out by hand: what it says of a policy must be right before it judges the code."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from tests.serving.books import Told
from tests.serving.referee import DAY, Customer, Referee, Verdict

POLICY = """
[contact]
min_churn_probability = 0.40
min_gap_days = 3.0
climb_after_days = 7.0
ladder_days = 90.0
[unrecoverable]
silence_days = 330.0
after_concierge = true
[consent]
purpose = "marketing"
unknown = "deny"
untracked = "allow"
[quiet_hours]
start = "21:00"
end = "08:00"
channels = ["push", "sms", "call"]
[budget]
per_day = 30.0
[capacity.concierge]
hours_per_day = 0.5
hours_per_contact = 0.25
[[caps]]
channel = "any"
contacts = 4
days = 30.0
[costs]
nudge = 0.05
offer = 4.00
concierge = 20.00
[effects.loyal]
nudge = 0.1
offer = 0.2
concierge = 0.3
[[rules]]
reason = "price"
offer = { strategy = "coupon", channels = ["sms", "wechat"] }
[[rules]]
nudge = { strategy = "hello", channels = ["push", "e-mail"] }
offer = { strategy = "gift", channels = ["e-mail", "sms"] }
concierge = { strategy = "talk", channels = ["call"] }
"""
GIFT, TALK = 100.0, 400.0
"""Values at which p = 0.5 makes an offer (10 - 4 = 6, a nudge 4.95, a call -5) or a call (60 - 20 = 40, an offer 36) worth most."""


def at(text: str, zone: str = "Europe/Berlin", fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


NOON = at("2026-06-01T12:00")


def somebody(value: float = GIFT, person: str = "ann", p: float = 0.5, **more: object) -> Customer:
    return Customer(person, p, value, "loyal", more.pop("silence_days", 10.0), **more)  # type: ignore[arg-type]


def referee(*changes: tuple[str, str]) -> Referee:
    text = POLICY
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    return Referee(text, "Europe/Berlin")


def contact(judge: Referee, id: str, customer: Customer, now: float) -> Verdict:
    verdict = judge.decide(customer, now)
    judge.book(id, customer, verdict)
    return verdict


# Quiet hours and the day of a contact


@pytest.mark.parametrize(
    ("now", "made"),
    [
        ("2026-06-01T20:59:59", "2026-06-01T20:59:59"),
        ("2026-06-01T21:00:00", "2026-06-02T08:00"),
        ("2026-06-02T00:30:10", "2026-06-02T08:00"),
        ("2026-06-02T07:59:59", "2026-06-02T08:00"),
        ("2026-06-02T08:00:00", "2026-06-02T08:00:00"),
        ("2026-03-28T23:00:00", "2026-03-29T08:00"),  # the night is an hour shorter, the clock says eight all the same
        ("2026-10-24T23:00:00", "2026-10-25T08:00"),  # and an hour longer
    ],
)
def test_quiet_hours_over_midnight_end_when_the_clock_says_so(now: str, made: str) -> None:
    assert referee().made("ann", "push", at(now)) == at(made)


def test_quiet_hours_that_end_in_the_hour_that_is_left_out_end_where_the_clock_jumps() -> None:
    judge = referee(('end = "08:00"', 'end = "02:30"'))
    assert judge.made("ann", "push", at("2026-03-29T01:00")) == at("2026-03-29T03:00")


def test_quiet_hours_that_end_in_the_hour_that_comes_twice_are_quiet_twice() -> None:
    judge = referee(('end = "08:00"', 'end = "02:30"'))
    assert judge.made("ann", "push", at("2026-10-25T01:00")) == at("2026-10-25T02:30")
    assert judge.made("ann", "push", at("2026-10-25T02:40")) == at("2026-10-25T02:40")
    assert judge.made("ann", "push", at("2026-10-25T02:10", fold=1)) == at("2026-10-25T02:30", fold=1)


def test_quiet_hours_are_those_of_the_customers_zone_and_of_their_channels() -> None:
    judge = referee()
    judge.homes["ann"] = "America/New_York"
    assert judge.made("ann", "push", at("2026-06-01T12:00")) == at("2026-06-01T08:00", "America/New_York")
    assert judge.made("ann", "e-mail", at("2026-06-01T12:00")) == at("2026-06-01T12:00")


def test_a_call_decided_at_ten_in_the_evening_is_made_at_eight_and_uses_tomorrows_hours() -> None:
    judge, night = referee(), at("2026-06-01T22:00")
    verdict = contact(judge, "a", somebody(TALK), night)
    assert (verdict.tier, verdict.channel, verdict.send_after) == ("concierge", "call", at("2026-06-02T08:00"))
    assert judge.spent == {("2026-06-02", "budget"): 20_000_000, ("2026-06-02", "concierge"): 250_000}


# Consent


def test_a_word_for_any_channel_overrules_older_ones_and_of_two_at_one_moment_the_withdrawal_wins() -> None:
    judge = referee()
    judge.consents = [("ann", "push", True, 5.0), ("ann", "", False, 5.0), ("ann", "sms", True, 6.0)]
    assert [judge.open("ann", one) for one in ("push", "e-mail", "sms")] == [False, False, True]


def test_without_a_word_it_hangs_on_whether_consents_are_kept() -> None:
    judge = referee()
    assert judge.open("ann", "push")
    judge.consent("ann", "sms", True, NOON)
    assert not judge.open("ann", "push")
    judge.tracked = True
    assert not judge.open("bob", "push")


# The reasons against a tier


def test_the_first_reason_in_order_is_told() -> None:
    judge = referee()
    judge.contacts = []
    contact(judge, "a", somebody(), NOON)
    assert judge.decide(somebody(p=0.1, silence_days=400.0), NOON).blocked == dict.fromkeys(
        ("nudge", "offer", "concierge"), "unrecoverable"
    )
    assert judge.decide(somebody(p=0.1), NOON).blocked == dict.fromkeys(("nudge", "offer", "concierge"), "minimum_gap")
    later = judge.decide(somebody(p=0.1), NOON + 4 * DAY)
    assert later.blocked == dict.fromkeys(("nudge", "offer", "concierge"), "ladder")
    climbing = judge.decide(somebody(p=0.1), NOON + 7 * DAY)
    assert climbing.blocked == {"nudge": "ladder", "offer": "ladder", "concierge": "low_risk"}
    assert judge.decide(somebody(p=0.1), NOON + 7 * DAY, occasion="cart_left").blocked == {"nudge": "ladder", "offer": "ladder"}


def test_an_answer_takes_the_next_contact_a_tier_down() -> None:
    judge = referee()
    contact(judge, "a", somebody(), NOON)
    judge.answers.append(("ann", NOON))
    assert judge.decide(somebody(), NOON + 4 * DAY).blocked == {"offer": "ladder", "concierge": "ladder"}


def test_a_call_without_an_answer_was_the_last_one() -> None:
    judge = referee()
    contact(judge, "a", somebody(TALK), NOON)
    assert set(judge.decide(somebody(TALK), NOON + 6 * DAY).blocked.values()) == {"ladder"}
    assert set(judge.decide(somebody(TALK), NOON + 7 * DAY).blocked.values()) == {"unrecoverable"}
    assert judge.decide(somebody(TALK), NOON + 90 * DAY).blocked == {}


def test_a_planned_contact_is_as_near_as_a_past_one() -> None:
    judge = referee()
    contact(judge, "a", somebody(TALK), at("2026-06-01T22:00"))  # made on the second, at eight
    assert judge.near("ann", at("2026-05-30T08:00:01"))
    assert not judge.near("ann", at("2026-05-30T08:00"))
    assert not judge.near("ann", at("2026-06-05T08:00"))


def test_a_cap_of_nothing_blocks_its_channel_also_for_who_was_never_contacted() -> None:
    judge = referee(('channel = "any"\ncontacts = 4', 'channel = "e-mail"\ncontacts = 0'))
    verdict = judge.decide(somebody(), NOON)
    assert (verdict.tier, verdict.channel, verdict.strategy) == ("offer", "sms", "gift")
    everything = referee(("contacts = 4", "contacts = 0"))
    assert set(everything.decide(somebody(), NOON).blocked.values()) == {"contact_cap"}


def test_a_cap_counts_contacts_after_its_days_began_and_its_segment_only() -> None:
    judge = referee(("contacts = 4\ndays = 30.0", "contacts = 1\ndays = 30.0"))
    contact(judge, "a", somebody(), NOON)
    assert judge.capped(somebody(), "push", NOON + 30 * DAY - 1)
    assert not judge.capped(somebody(), "push", NOON + 30 * DAY)
    other = referee(('channel = "any"', 'channel = "any"\nsegment = "new"'), ("contacts = 4", "contacts = 0"))
    assert other.decide(somebody(), NOON).tier == "offer"


# Money


def test_what_is_left_of_the_day_is_never_below_nothing_when_the_budget_is_lowered() -> None:
    judge = referee()
    contact(judge, "a", somebody(TALK), NOON)
    judge.obey(POLICY.replace("per_day = 30.0", "per_day = 10.0"))
    verdict = judge.decide(somebody(TALK, "bob"), NOON)
    assert (judge.left("budget", "2026-06-01"), verdict.tier, verdict.binding) == (0, "none", "budget")
    assert verdict.blocked == dict.fromkeys(("nudge", "offer", "concierge"), "budget")


def test_who_cannot_be_paid_gets_the_next_best_and_money_is_named_before_hours() -> None:
    judge = referee(("per_day = 30.0", "per_day = 44.0"))
    told = [contact(judge, name, somebody(TALK, name), NOON) for name in ("ann", "bob", "cid")]
    assert [one.tier for one in told] == ["concierge", "concierge", "offer"]
    assert [one.binding for one in told] == [None, None, "budget"]
    assert judge.spent == {("2026-06-01", "budget"): 44_000_000, ("2026-06-01", "concierge"): 500_000}
    rich = referee(("per_day = 30.0", "per_day = 99.0"), ("hours_per_day = 0.5", "hours_per_day = 0.2"))
    assert rich.decide(somebody(TALK), NOON).blocked == {"concierge": "capacity"}


def test_a_price_that_forbids_the_best_tier_names_what_it_is_the_price_of() -> None:
    day = {"2026-06-01": {"budget": 0.0, "concierge": 20.0}}
    verdict = referee().decide(somebody(TALK), NOON, day)  # 40 - 20 * 0.25 = 35 < 36
    assert (verdict.tier, verdict.binding, verdict.blocked) == ("offer", "capacity", {})
    assert referee().decide(somebody(TALK), at("2026-06-01T22:00"), day).tier == "concierge"  # tomorrow's hours have no price


# What is told afterwards


def test_a_contact_that_failed_gives_back_its_money_until_a_proof_comes() -> None:
    judge = referee()
    contact(judge, "a", somebody(TALK), NOON)
    judge.happened("a", "ann", "call", "failed", NOON + 60, NOON + 60)
    assert judge.spent == {("2026-06-01", "budget"): 0, ("2026-06-01", "concierge"): 250_000}
    assert judge.decide(somebody(), NOON + 120).tier == "offer"  # no gap, no rung
    judge.happened("a", "ann", "call", "refused", NOON + 90, NOON + 180)
    assert judge.spent == {("2026-06-01", "budget"): 20_000_000, ("2026-06-01", "concierge"): 250_000}
    assert set(judge.decide(somebody(), NOON + 240).blocked.values()) == {"minimum_gap"}


def test_a_proof_told_before_overrules_a_failure_told_later() -> None:
    judge = referee(("[costs]", '[failed]\ncost = "spent"\nhours = "returned"\n[costs]'))
    contact(judge, "a", somebody(TALK), NOON)
    judge.happened("a", "ann", "call", "opened", NOON, NOON)
    judge.happened("a", "ann", "call", "failed", NOON + 60, NOON + 60)
    assert judge.spent[("2026-06-01", "concierge")] == 250_000
    assert not judge.contacts[0].failed


def test_an_unsubscription_told_again_does_not_undo_the_consent_given_between() -> None:
    judge = referee()
    contact(judge, "a", somebody(), NOON)
    judge.happened("a", "ann", "e-mail", "unsubscribed", NOON + 60, NOON + 60)
    assert not judge.open("ann", "e-mail")
    judge.consent("ann", "e-mail", True, NOON + 90)
    judge.happened("a", "ann", "e-mail", "unsubscribed", NOON + 60, NOON + 120)
    assert judge.open("ann", "e-mail")


def test_an_order_answers_what_came_before_it_whenever_that_is_told() -> None:
    judge = referee()
    contact(judge, "a", somebody(), NOON)
    judge.answers.append(("ann", NOON + 60))
    judge.list_contacts([Told("1", "ann", NOON - DAY, "push"), Told("2", "ann", NOON + DAY, "push", 2)])
    assert [(one.tier, judge.answered(one)) for one in judge.contacts] == [(2, True), (1, True), (2, False)]


@pytest.mark.parametrize(
    ("listed", "contacts"),
    [
        (Told("1", "ann", at("2026-06-01T23:59"), "e-mail", 2), 1),
        (Told("1", "ann", at("2026-06-01T00:00"), "e-mail"), 1),
        (Told("1", "ann", NOON + 9 * DAY, "e-mail", None, "a"), 1),
        (Told("1", "ann", at("2026-06-02T00:00"), "e-mail", 2), 2),  # another day
        (Told("1", "ann", NOON, "e-mail", 1), 2),  # another tier
        (Told("1", "ann", NOON, "sms", 2), 2),
        (Told("1", "bob", NOON, "e-mail", 2), 2),
    ],
)
def test_a_contact_that_the_shop_lists_of_a_decided_one_is_that_one(listed: Told, contacts: int) -> None:
    judge = referee()
    contact(judge, "a", somebody(), NOON)
    for _ in range(2):  # told again it is the same
        judge.list_contacts([listed])
    assert len(judge.contacts) == contacts
    judge.list_contacts([Told("2", "ann", NOON, "e-mail")])  # of two listed contacts one at most is the decided one
    assert len(judge.contacts) == 2


# What is said


def test_a_churn_reason_changes_what_is_said_only_to_a_channel_made_on_the_same_day() -> None:
    day = referee().decide(somebody(reason="price"), NOON)
    assert (day.tier, day.strategy, day.channel) == ("offer", "coupon", "sms")
    night = referee().decide(somebody(reason="price"), at("2026-06-01T22:00"))  # a text message would be sent on the next day
    assert (night.strategy, night.channel, night.send_after) == ("coupon", "wechat", None)
    judge = referee()
    judge.consents = [("ann", "e-mail", True, 0.0), ("ann", "sms", True, 0.0)]
    assert judge.decide(somebody(reason="price"), at("2026-06-01T22:00")).strategy == "gift"


def test_of_two_tiers_worth_the_same_the_weaker_is_taken_and_of_two_apart_by_a_rounding_either() -> None:
    judge = referee(("offer = 0.2", "offer = 0.1"), ("offer = 4.00", "offer = 0.05"))
    assert judge.decide(somebody(), NOON, taken="offer").tier == "nudge"
    close = referee(("offer = 0.2", "offer = 0.10000000000001"), ("offer = 4.00", "offer = 0.05"))
    assert [close.decide(somebody(), NOON, taken=one).tier for one in ("offer", "nudge")] == ["offer", "nudge"]
