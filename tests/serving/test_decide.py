"""Who may be contacted how, by hand: one customer, one constraint at a time, against figures worked out without the code under test."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from features.domain import TOUCHPOINTS
from serving import decide
from serving.decide import NO_OCCASION, OCCASIONS, REASONS, SEGMENTS, Binding, Options, Situation
from serving.online import DAY_SECONDS, PastContact, Standing
from serving.policy import CHANNELS, TIERS, Occasion, Policy, Segment, read
from serving.quiet import send_after
from serving.standings import DecisionMoment, standings
from tests.serving.test_policy import shipped_with

POLICY = read()
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()
TOUCHED = [touchpoint.name for touchpoint in TOUCHPOINTS]
NONE, NUDGE, OFFER, CONCIERGE = range(4)
MODELLED = ("p", "value", "segment", "touchpoints_NP", "silence_days")
"""Fields of a situation that come from the model and the table."""


def situation(
    standing: Standing | None = None,
    policy: Policy | None = None,
    *,
    segment: Segment = Segment.STANDARD,
    touchpoints: tuple[str, ...] = (),
    occasion: Occasion | None = None,
    tracked: bool = False,
    **given: float,
) -> Situation:
    """One customer of a high risk and value whom, unless told otherwise, nothing keeps from a contact."""
    place, known = SEGMENTS.index(segment), [standing or Standing({}, ())]
    fields = standings(DecisionMoment(policy or POLICY, NOW, ZoneInfo("UTC"), tracked), known, [place], occasion and occasion.value)
    numbers = {"p": 0.8, "value": 500.0, "silence_days": 20.0} | given
    touched_NP = np.array([[name in touchpoints for name in TOUCHED]])
    p, value, silence = (np.array([numbers[name]]) for name in ("p", "value", "silence_days"))
    return Situation(p, value, np.array([place]), touched_NP, silence, **fields)


def contact(tier: int, days_ago: float, answered: bool = False, channel: str = "e-mail") -> PastContact:
    return PastContact(NOW - days_ago * DAY_SECONDS, tier, channel, answered)


def found(s: Situation, policy: Policy | None = None) -> Options:
    return decide.options(policy or POLICY, s)


def blocked(s: Situation, policy: Policy | None = None) -> list[str | None]:
    """What blocks each tier, in words."""
    return [Binding(int(code)).told for code in found(s, policy).blocked_NT[0]]


def channels(s: Situation, policy: Policy | None = None) -> list[str | None]:
    """The channel of each tier of contact."""
    return [CHANNELS[channel] if channel >= 0 else None for channel in found(s, policy).channel_NT[0, 1:].tolist()]


# Gains


def test_the_gain_is_probability_times_effect_times_value_less_cost() -> None:
    s = situation(p=0.8, value=500.0, segment=Segment.HIGH_VALUE)
    by_hand = [0.0, 0.8 * 0.08 * 500 - 0.05, 0.8 * 0.24 * 500 - 4, 0.8 * 0.42 * 500 - 20]  # 0, 31.95, 92, 148
    np.testing.assert_allclose(found(s).gains_NT[0], by_hand, atol=1e-12)
    assert blocked(s) == [None] * 4


def test_value_counts_orders_over_a_year_at_least() -> None:
    worth = decide.values(POLICY, np.array([100.0, 365.0, 730.0]), np.array([4.0, 4.0, 4.0]), np.full(3, 50.0))
    np.testing.assert_allclose(worth, [50 * 4 * 0.35, 50 * 4 * 0.35, 50 * 2 * 0.35])


def test_prices_make_a_cheaper_tier_the_best_and_ties_go_to_the_weakest() -> None:
    policy, options = POLICY, found(situation(segment=Segment.HIGH_VALUE))  # gains 0, 31.95, 92, 148
    assert decide.choice(policy, options, np.array([[0.0, 0.0]]))[0] == CONCIERGE
    assert decide.choice(policy, options, np.array([[4.0, 0.0]]))[0] == OFFER  # 31.75, 76, 68
    assert decide.choice(policy, options, np.array([[20.0, 0.0]]))[0] == NUDGE  # 30.95, 12, -252
    assert decide.choice(policy, options, np.array([[1000.0, 0.0]]))[0] == NONE
    level = Options(np.array([[0.0, 5.0, 5.0, 5.0]]), *(np.zeros((1, 4), dtype=np.int64) for _ in range(4)))
    assert decide.choice(policy, level, np.zeros((1, 2)))[0] == NUDGE


def test_a_contact_that_costs_more_than_it_wins_is_not_made() -> None:
    s = situation(value=0.5)
    assert decide.choice(POLICY, found(s), np.zeros((1, 2)))[0] == NONE
    assert (found(s).gains_NT[0, 1:] < 0).all()


# Consent


def test_unknown_consent_is_denied_where_the_shop_keeps_consents_and_allowed_where_it_keeps_none() -> None:
    assert blocked(situation(tracked=True)) == [None, "no_consent", "no_consent", "no_consent"]
    assert blocked(situation(tracked=False)) == [None] * 4


def test_a_policy_may_turn_both_words_around() -> None:
    turned = shipped_with(consent={"purpose": "marketing", "unknown": "allow", "untracked": "deny"})
    assert blocked(situation(policy=turned, tracked=True), turned) == [None] * 4
    assert blocked(situation(policy=turned, tracked=False), turned) == [None, "no_consent", "no_consent", "no_consent"]


def test_consent_for_one_channel_opens_that_one_only() -> None:
    s = situation(Standing({"sms": True}, ()), tracked=True)  # nudge: push, e-mail; offer: e-mail, sms; concierge: call, wechat
    assert blocked(s) == [None, "no_consent", None, "no_consent"]
    assert channels(s) == [None, "sms", None]


def test_a_channel_told_of_makes_the_others_unknown_even_where_the_shop_keeps_no_consents() -> None:
    s = situation(Standing({"sms": True}, ()), tracked=False)
    assert blocked(s) == [None, "no_consent", None, "no_consent"]


def test_a_blanket_consent_holds_for_every_channel_without_a_word_of_its_own() -> None:
    assert channels(situation(Standing({"": True, "push": False, "e-mail": False}, ()), tracked=True)) == [None, "sms", "call"]
    assert channels(situation(Standing({"": False, "push": True}, ()), tracked=True)) == ["push", None, None]
    assert blocked(situation(Standing({"": False}, ()))) == [None, "no_consent", "no_consent", "no_consent"]


# Gap, ladder, unrecoverable


@pytest.mark.parametrize(("days", "gap"), [(0.0, True), (2.9, True), (3.0, False)])
def test_the_minimum_gap_holds_whatever_the_tier_and_the_answer(days: float, gap: bool) -> None:
    for tier, answered in ((1, False), (2, True), (3, True)):
        s = situation(Standing({}, (contact(tier, days, answered),)))
        assert (blocked(s)[NUDGE] == "minimum_gap") == gap


def test_an_answer_withheld_for_less_than_seven_days_means_waiting() -> None:
    assert blocked(situation(Standing({}, (contact(NUDGE, 6.9),)))) == [None, "ladder", "ladder", "ladder"]


@pytest.mark.parametrize(("last", "allowed"), [(NUDGE, [OFFER]), (OFFER, [CONCIERGE])])
def test_after_seven_days_without_a_response_the_customer_climbs_one_tier(last: int, allowed: list[int]) -> None:
    told = blocked(situation(Standing({}, (contact(last, 7.0),))))
    assert [tier for tier in (1, 2, 3) if told[tier] is None] == allowed
    assert {told[tier] for tier in (1, 2, 3) if tier not in allowed} == {"ladder"}


@pytest.mark.parametrize(("last", "strongest"), [(NUDGE, NUDGE), (OFFER, NUDGE), (CONCIERGE, OFFER)])
@pytest.mark.parametrize("days", [4.0, 89.0])
def test_after_an_answer_the_next_contact_is_a_tier_weaker(last: int, strongest: int, days: float) -> None:
    told = blocked(situation(Standing({}, (contact(last, days, answered=True),))))
    assert [told[tier] for tier in (1, 2, 3)] == [None if tier <= strongest else "ladder" for tier in (1, 2, 3)]


def test_the_ladder_forgets_after_ninety_days() -> None:
    s = situation(Standing({}, (contact(OFFER, 90.0),)))
    assert blocked(s) == [None] * 4


def test_only_the_last_contact_counts_for_the_ladder() -> None:
    s = situation(Standing({}, (contact(OFFER, 30.0, answered=True), contact(NUDGE, 8.0))))
    assert blocked(s) == [None, "ladder", None, "ladder"]


def test_an_advisor_in_vain_and_a_long_silence_are_unrecoverable() -> None:
    gone = [None, "unrecoverable", "unrecoverable", "unrecoverable"]
    assert blocked(situation(Standing({}, (contact(CONCIERGE, 7.0, channel="wechat"),)))) == gone
    assert blocked(situation(silence_days=330.1)) == gone
    assert blocked(situation(silence_days=330.0)) == [None] * 4


def test_an_advisor_asked_yesterday_is_waited_for() -> None:
    s = situation(Standing({}, (contact(CONCIERGE, 1.0, channel="wechat"),)))
    assert blocked(s) == [None, "minimum_gap", "minimum_gap", "minimum_gap"]


def test_a_policy_may_let_the_advisor_try_again() -> None:
    again = shipped_with(unrecoverable={"silence_days": 330.0, "after_concierge": False})
    s = situation(Standing({}, (contact(CONCIERGE, 8.0, channel="wechat"),)), again)
    assert blocked(s, again) == [None, "ladder", "ladder", None]


# Caps


def times(number: int, channel: str, days_ago: float = 5.0) -> Standing:
    """So many contacts, all answered and strong, so that the ladder leaves an offer."""
    return Standing({}, tuple(contact(CONCIERGE, days_ago + 0.01 * step, True, channel) for step in reversed(range(number))))


def test_two_sms_a_week_are_the_price_sensitives_cap_and_three_everybodys() -> None:
    for number, segment, capped in (
        (1, Segment.PRICE_SENSITIVE, False),
        (2, Segment.PRICE_SENSITIVE, True),
        (2, Segment.SILENT, False),
        (3, Segment.SILENT, True),
    ):
        s = situation(times(number, "sms"), segment=segment)
        assert channels(s)[OFFER - 1] == ("e-mail" if capped else "sms")


def test_a_cap_forgets_what_is_older_than_its_days() -> None:
    assert channels(situation(times(2, "sms", 7.0), segment=Segment.PRICE_SENSITIVE))[OFFER - 1] == "sms"
    assert channels(situation(times(2, "sms", 6.9), segment=Segment.PRICE_SENSITIVE))[OFFER - 1] == "e-mail"


def test_a_tier_without_a_free_channel_is_capped() -> None:
    sms_only = Standing({"sms": True}, times(2, "sms").contacts)
    assert blocked(situation(sms_only, segment=Segment.PRICE_SENSITIVE))[OFFER] == "contact_cap"
    one_call = Standing({"call": True}, (contact(CONCIERGE, 29.0, False, "call"), contact(OFFER, 8.0)))
    assert blocked(situation(one_call))[CONCIERGE] == "contact_cap"


def test_four_contacts_in_thirty_days_close_every_channel() -> None:
    four = Standing({}, tuple(contact(NUDGE, days, True, channel) for days, channel in ((29.9, "sms"), (20, "push"), (9, "call"), (8, ""))))
    assert blocked(situation(four))[NUDGE] == "contact_cap"
    three = Standing({}, four.contacts[1:])
    assert blocked(situation(three))[NUDGE] is None


# Low risk, occasions


def test_below_the_least_probability_the_customer_is_left_alone_unless_an_occasion_asks() -> None:
    assert blocked(situation(p=0.3999)) == [None, "low_risk", "low_risk", "low_risk"]
    assert blocked(situation(p=0.40)) == [None] * 4
    for occasion in Occasion:
        assert blocked(situation(p=0.1, occasion=occasion)) == [None] * 4


def test_an_occasion_waives_nothing_else() -> None:
    s = situation(Standing({"": False}, (contact(NUDGE, 1.0),)), occasion=Occasion.CART_LEFT)
    assert blocked(s) == [None, "no_consent", "no_consent", "no_consent"]


def test_the_first_constraint_that_holds_is_named() -> None:
    everything = Standing({"": False}, tuple(contact(NUDGE, 0.5 + n / 10) for n in reversed(range(5))))
    assert blocked(situation(everything, p=0.1, silence_days=400.0))[NUDGE] == "no_consent"
    consented = Standing({"": True}, everything.contacts)
    assert blocked(situation(consented, p=0.1, silence_days=400.0))[NUDGE] == "unrecoverable"
    assert blocked(situation(consented, p=0.1))[NUDGE] == "minimum_gap"


# Rules, channels, reasons


def strategy(s: Situation, tier: int, reason: str | None = None) -> tuple[str, str]:
    """Strategy and channel of a tier once the churn reason is known."""
    policy, code = POLICY, -1 if reason is None else [one.value for one in REASONS].index(reason)
    rule, channel = decide.refined(policy, s, found(s), np.array([tier]), np.array([code]))
    told = decide.action(policy, tier, int(rule[0]), int(channel[0]))
    assert told["tier"] == TIERS[tier]
    return told["strategy"], told["channel"]


def test_the_first_rule_that_fits_and_names_the_tier_is_taken() -> None:
    assert strategy(situation(touchpoints=("complaint_open", "refund_late")), OFFER)[0] == "apology and a voucher without a threshold"
    assert strategy(situation(segment=Segment.NEW, occasion=Occasion.FIRST_ORDER), NUDGE)[0] == "thanks and guidance to the second order"
    assert strategy(situation(segment=Segment.NEW, occasion=Occasion.FIRST_ORDER), CONCIERGE)[0] == "welcome call by an advisor"
    assert strategy(situation(segment=Segment.STANDARD, occasion=Occasion.SILENT), OFFER)[0] == "time-limited coupon"


def test_channels_come_in_the_order_of_preference() -> None:
    assert channels(situation(segment=Segment.PRICE_SENSITIVE)) == ["push", "sms", "wechat"]
    no_push = Standing({"push": False, "": True}, ())
    assert channels(situation(no_push, segment=Segment.PRICE_SENSITIVE)) == ["e-mail", "sms", "wechat"]


def test_a_churn_reason_changes_what_is_said_but_never_the_tier() -> None:
    s = situation(segment=Segment.SILENT)
    assert strategy(s, OFFER) == ("wake-up coupon with free shipping", "sms")
    assert strategy(s, OFFER, "unknown") == ("wake-up coupon with free shipping", "sms")
    assert strategy(s, OFFER, "service") == ("apology and a voucher without a threshold", "e-mail")
    assert strategy(s, OFFER, "need_changed") == ("trial pack of new arrivals", "e-mail")
    assert strategy(s, NUDGE, "service") == ("novelties in the categories once watched", "e-mail")


def test_a_reason_whose_channels_are_closed_leaves_the_action_as_it_was() -> None:
    policy = POLICY
    s = situation(Standing({"wechat": True}, ()), segment=Segment.HIGH_VALUE, tracked=True)
    rule, channel = decide.refined(policy, s, found(s), np.array([OFFER]), np.array([REASONS.index(REASONS[0])]))
    assert decide.action(policy, OFFER, int(rule[0]), int(channel[0])) == {
        "tier": "offer",
        "strategy": "tailored benefit, valid 7 days",
        "channel": "wechat",
    }
    silent = situation(Standing({"sms": True}, ()), segment=Segment.SILENT, tracked=True)
    trial = shipped_with(rules=_with_mail_only_trial())
    rule, channel = decide.refined(trial, silent, found(silent, trial), np.array([OFFER]), np.array([_code("need_changed")]))
    assert decide.action(trial, OFFER, int(rule[0]), int(channel[0]))["channel"] == "sms"
    assert decide.action(trial, OFFER, int(rule[0]), int(channel[0]))["strategy"] == "wake-up coupon"


def _code(reason: str) -> int:
    return [one.value for one in REASONS].index(reason)


def _with_mail_only_trial() -> list[dict[str, Any]]:
    every = {"nudge": _said("hello", "e-mail", "sms"), "offer": _said("wake-up coupon", "sms"), "concierge": _said("call", "call")}
    return [{"reason": "need_changed", "offer": _said("trial pack", "e-mail")}, every]


def _said(strategy: str, *channels: str) -> dict[str, Any]:
    return {"strategy": strategy, "channels": list(channels)}


def test_the_gain_given_up_is_that_of_the_best_tier_over_the_one_chosen() -> None:
    policy = POLICY
    s = situation(Standing({}, (contact(OFFER, 4.0, answered=True),)), segment=Segment.HIGH_VALUE)  # gains 0, 31.95, 92, 148
    why, given_up = decide.binding(policy, found(s), np.array([NUDGE]), np.zeros((1, 2)))
    assert Binding(int(why[0])).told == "ladder"
    assert given_up[0] == pytest.approx(148 - 31.95)


@pytest.mark.parametrize(("prices", "named"), [((9.0, 0.0), "budget"), ((0.0, 999.0), "capacity"), ((0.1, 999.0), "capacity")])
def test_where_nothing_blocks_the_best_tier_the_dearest_resource_is_named(prices: tuple[float, float], named: str) -> None:
    policy, s, at = POLICY, situation(segment=Segment.HIGH_VALUE), np.array([prices])
    tiers = decide.choice(policy, found(s), at)
    assert tiers[0] != CONCIERGE
    assert Binding(int(decide.binding(policy, found(s), tiers, at)[0][0])).told == named


# Quiet hours

BERLIN, TOKYO = ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Tokyo")


@pytest.mark.parametrize(
    ("now", "zone", "after"),
    [
        ("2026-06-10T20:59:59+02:00", BERLIN, None),
        ("2026-06-10T21:00:00+02:00", BERLIN, "2026-06-11T08:00:00+02:00"),
        ("2026-06-11T00:30:00+02:00", BERLIN, "2026-06-11T08:00:00+02:00"),
        ("2026-06-11T08:00:00+02:00", BERLIN, None),
        ("2026-06-10T20:00:00+02:00", TOKYO, "2026-06-11T08:00:00+09:00"),  # three in the morning there
        ("2026-06-10T03:00:00+02:00", TOKYO, None),
        ("2026-03-28T23:00:00+01:00", BERLIN, "2026-03-29T08:00:00+02:00"),  # the clocks go forward that night
        ("2026-10-24T23:00:00+02:00", BERLIN, "2026-10-25T08:00:00+01:00"),  # and back
        ("2026-12-31T22:00:00+01:00", BERLIN, "2027-01-01T08:00:00+01:00"),
    ],
)
def test_quiet_hours_go_over_midnight_in_the_customers_zone(now: str, zone: ZoneInfo, after: str | None) -> None:
    found = send_after(POLICY, "sms", datetime.fromisoformat(now), zone)
    assert (found and found.isoformat()) == after


def test_the_night_of_the_change_is_an_hour_shorter_or_longer() -> None:
    waits = [
        send_after(POLICY, "call", datetime.fromisoformat(now), BERLIN) - datetime.fromisoformat(now)  # type: ignore[operator]
        for now in ("2026-03-28T23:00:00+01:00", "2026-10-24T23:00:00+02:00", "2026-06-10T23:00:00+02:00")
    ]
    assert [wait / timedelta(hours=1) for wait in waits] == [8, 10, 9]


def test_the_repeated_hour_of_the_autumn_night_is_quiet_both_times() -> None:
    for hour in ("2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00"):
        found = send_after(POLICY, "push", datetime.fromisoformat(hour), BERLIN)
        assert found is not None
        assert found.isoformat() == "2026-10-25T08:00:00+01:00"


def test_a_channel_without_quiet_hours_goes_at_once() -> None:
    night = datetime.fromisoformat("2026-06-10T23:00:00+02:00")
    assert send_after(POLICY, "e-mail", night, BERLIN) is None
    assert send_after(shipped_with(quiet_hours=None), "sms", night, BERLIN) is None


def test_quiet_hours_within_a_day() -> None:
    noon = shipped_with(quiet_hours={"start": "12:00", "end": "14:00", "channels": ["call"]})
    told = [send_after(noon, "call", datetime(2026, 6, 10, hour, tzinfo=BERLIN), BERLIN) for hour in (11, 12, 13, 14)]
    assert [one and one.hour for one in told] == [None, 14, 14, None]


# Many at once, and JSON


def many(n: int, seed: int = 1) -> Situation:
    """Customers of all kinds."""
    rng = np.random.default_rng(seed)
    last = rng.integers(0, 4, n)
    return Situation(
        rng.random(n),
        rng.lognormal(4, 2, n),
        rng.integers(0, len(SEGMENTS), n),
        rng.random((n, len(TOUCHED))) < 0.15,
        rng.random(n) * 400,
        rng.integers(NO_OCCASION, len(OCCASIONS), n),
        rng.random((n, len(CHANNELS))) < 0.7,
        rng.random((n, len(CHANNELS))) < 0.1,
        rng.random((n, len(CHANNELS))) < 0.2,
        rng.integers(0, 2, (n, len(CHANNELS))),
        last,
        np.where(last > 0, rng.random(n) * 100, np.inf),
        (last > 0) & (rng.random(n) < 0.4),
    )


def test_a_row_alone_is_decided_as_in_a_batch_to_the_last_bit() -> None:
    policy, s, rng = POLICY, many(2000), np.random.default_rng(2)
    together, reason = decide.options(policy, s), rng.integers(0, len(REASONS), 2000)
    tiers = decide.choice(policy, together, np.array([[0.3, 5.0], [0.1, 9.0]]))
    rule, channel = decide.refined(policy, s, together, tiers, reason)
    assert set(np.unique(tiers)) == {0, 1, 2, 3}
    for row in range(0, 2000, 7):
        one = slice(row, row + 1)
        alone = decide.options(policy, s.at(one))
        for name in ("gains_NT", "blocked_NT", "rule_NT", "channel_NT", "day_NT"):
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[row])
        assert decide.choice(policy, alone, np.array([[0.3, 5.0], [0.1, 9.0]]))[0] == tiers[row]
        assert [int(found[0]) for found in decide.refined(policy, s.at(one), alone, tiers[one], reason[one])] == [rule[row], channel[row]]


def test_a_recommendation_is_the_decision_about_customers_whom_nothing_keeps_from_a_contact() -> None:
    """The short way of `recommended` against the long one, together and alone."""
    n, reasons = 2000, np.random.default_rng(4).integers(-1, len(REASONS), 2000)
    for policy in (POLICY, shipped_with(unrecoverable={"silence_days": 100, "after_concierge": True})):
        s = Situation(**{name: getattr(many(n, 3), name) for name in MODELLED}, **decide.open_standings(n))
        options = decide.options(policy, s)
        tiers = options.allowed_NT.argmax(axis=1)
        expected = (options.gains_NT, tiers, *decide.refined(policy, s, options, tiers, reasons))
        for rows in (slice(0, n), *(slice(row, row + 1) for row in range(0, n, 37))):
            found = decide.recommended(policy, **{name: getattr(s, name)[rows] for name in MODELLED}, reason=reasons[rows])
            for name, values in zip(("gains_NT", "tiers", "rule", "channel"), expected, strict=True):
                np.testing.assert_array_equal(getattr(found, name), values[rows])
        assert set(np.unique(tiers)) == {0, 1, 2, 3}


def test_a_reason_that_does_not_matter_changes_nothing_and_one_that_does_may() -> None:
    policy, s = POLICY, many(2000, 5)
    options = decide.options(policy, s)
    tiers = options.allowed_NT.argmax(axis=1)
    matters = decide.reason_matters(policy, s, tiers)
    told = np.array([np.array(decide.refined(policy, s, options, tiers, np.full(2000, reason)))[0] for reason in range(-1, len(REASONS))])
    differs = (told != told[0]).any(axis=0)
    assert not differs[~matters].any()
    assert 0 < differs.sum() <= matters.sum() < 2000


def test_every_constraint_occurs_in_the_batch_and_no_blocked_tier_is_chosen() -> None:
    policy, s = POLICY, many(20_000)
    options = decide.options(policy, s)
    tiers = decide.choice(policy, options, np.zeros((2, 2)))
    assert set(np.unique(options.blocked_NT)) == {int(one) for one in Binding if one < Binding.BUDGET}
    assert not options.blocked_NT[np.arange(len(s)), tiers].any()
    contacted = tiers > 0
    channel = options.channel_NT[np.arange(len(s)), tiers]
    assert s.open_NC[contacted, channel[contacted]].all()
    assert not s.capped_NC[contacted, channel[contacted]].any()


def test_a_situation_goes_through_json_and_back_to_the_last_bit() -> None:
    policy, s = POLICY, many(500)
    for row in range(500):
        one = s.at(slice(row, row + 1))
        again = Situation.from_json(
            json.loads(
                json.dumps({name: getattr(one, name)[0].tolist() for name in Situation.__dataclass_fields__}).replace("Infinity", "null")
            ),
            policy,
        )
        for name in Situation.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(again, name), getattr(one, name), strict=True)
        assert decide.options(policy, again).gains_NT.tobytes() == decide.options(policy, one).gains_NT.tobytes()


@pytest.mark.parametrize(
    ("value", "stage", "plan", "keen", "segment"),
    [
        ("high", "new", "silent", True, "high_value"),
        ("standard", "new", "silent", True, "price_sensitive"),
        ("standard", "new", "silent", False, "new"),
        ("standard", "active", "churned", False, "silent"),
        ("standard", "loyal", "silent", False, "silent"),
        ("standard", "loyal", "mature", False, "loyal"),
        ("standard", "active", "growing", False, "standard"),
    ],
)
def test_the_segment_is_the_first_that_fits(value: str, stage: str, plan: str, keen: bool, segment: str) -> None:
    assert SEGMENTS[decide.segment(value, stage, plan, keen)].value == segment


def test_a_policy_read_again_decides_as_before() -> None:
    first, again, s = read(), read(), many(3)
    for policy in (first, again, first, again):  # the second one finds what the first has left in the caches
        assert policy.use_KT.shape == (2, 4)
        assert decide.options(policy, s).rule_NT.tolist() == decide.options(first, s).rule_NT.tolist()
