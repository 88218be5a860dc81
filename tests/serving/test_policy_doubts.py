"""Doubtful policy files: `holdfast policy check` warns of each and of nothing else; what it says is so, and decisions go on."""

from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from features.domain import TOUCHPOINTS
from serving import decide, decisions, policy
from serving.decide import SEGMENTS, Situation
from serving.online import DAY_SECONDS, PastContact, Standing
from serving.policy import CHANNELS, TIERS, Policy
from serving.standings import DecisionMoment, standings
from tests.serving.test_policy_files import File, cap, told

NOW, N = 1_800_000_000.0, 400
WITHOUT_CALLS = {'"call", "wechat"': '"wechat"', '"wechat", "call"': '"wechat"'}
FIRST_ORDER = '[[rules]]\noccasion = "first_order_24h"\n'
GIFT = '[[rules]]\noccasion = ["first_order_24h", "anniversary"]\noffer = { strategy = "gift", channels = ["e-mail"] }\n\n'
NAMED = tuple(segment.value for segment in SEGMENTS)
ZERO_COSTS = {"nudge = 0.05": "nudge = 0", "offer = 4.00": "offer = 0", "concierge = 20.00": "concierge = 0"}
NO_EFFECT = "wins nobody back"

DOUBTFUL = [
    # caps
    File("caps.0.contacts", "2", "caps.1 (channel sms, 2 in 7 days) is at least as tight", {"contacts = 3": "contacts = 2"}),
    File("caps.2.contacts", "3", "caps.0 (channel sms, 2 in 14 days) is at least", cap("sms", 2, 14), ("caps.1.contacts",)),
    File(
        "caps.3.contacts",
        "1",
        "caps.4 (channel any, 1 in 30 days)",
        {"contacts = 4": "contacts = 1"} | cap("push", 9, 1),
        ("caps.0.contacts", "caps.0.days", "caps.1.contacts", "caps.2.contacts"),
    ),
    File(
        "caps.2.contacts",
        "1",
        "caps.3 (channel any, 1 in 90 days)",
        {"contacts = 4\ndays = 30.0": "contacts = 1\ndays = 90"},
        ("caps.0.contacts", "caps.1.contacts"),
    ),
    File("caps.0.contacts", "5", "caps.4 (channel any, 4 in 30 days)", cap("any", 5, 30, 'segment = "new"')),
    File("caps.0.contacts", "4", "caps.4 (channel any, 4 in 30 days)", cap("push", 4, 29)),
    File("caps.0.contacts", "4", "caps.4 (channel any, 4 in 30 days)", cap("e-mail", 4, 30, 'segment = "loyal"')),
    File("caps.0.days", "2.5", "contact.min_gap_days = 3.0 keeps two contacts apart for as long", cap("push", 1, 2.5)),
    File("caps.0.days", "3.0", "keeps two contacts apart", cap("e-mail", 3, 3)),
    File("caps.0.contacts", "0", "nobody is ever contacted by sms", cap("sms", 0, 1), ("caps.1.contacts", "caps.2.contacts"), never="sms"),
    File(
        "caps.0.contacts",
        "0",
        "nobody is ever contacted",
        cap("any", 0, 20),
        tuple(f"caps.{place}.contacts" for place in (1, 2, 3, 4)),
        never="any",
    ),
    File("caps.0.contacts", "0", "nobody of segment loyal is ever contacted by push", cap("push", 0, 20, 'segment = "loyal"')),
    File("caps.2.channel", "'call'", "no rule uses this channel", {}, everywhere=WITHOUT_CALLS),
    # money and hours
    File("budget.per_day", "0.0", "less than the cheapest contact with a cost (0.05)", {"per_day = 1000.0": "per_day = 0.0"}, never="any"),
    File("budget.per_day", "0.04", "none with a cost is ever made", {"per_day = 1000.0": "per_day = 0.04"}, never="any"),
    File(
        "costs.concierge",
        "20.0",
        "more than budget.per_day = 19.99: no concierge is ever made",
        {"per_day = 1000.0": "per_day = 19.99"},
        never="concierge",
    ),
    File(
        "costs.offer",
        "4.0",
        "more than budget.per_day = 1.0: no offer",
        {"per_day = 1000.0": "per_day = 1"},
        ("costs.concierge",),
        never="offer",
    ),
    File(
        "budget.per_day",
        "1000.0",
        "no tier has a cost",
        ZERO_COSTS,
        (
            "costs.offer",
            "costs.concierge",
            "effects.high_value.nudge",
            "effects.high_value.offer",
            "effects.price_sensitive.nudge",
            "effects.new.nudge",
            "effects.silent.nudge",
            "effects.silent.offer",
            "effects.loyal.nudge",
            "effects.loyal.offer",
            "effects.standard.nudge",
            "effects.standard.offer",
        ),
    ),
    File("costs.offer", "0.0", "costs nothing", {"offer = 4.00": "offer = 0"}, tuple(f"effects.{s}.nudge" for s in NAMED)),
    File(
        "capacity.concierge.hours_per_day",
        "0.0",
        "less than a single contact takes (hours_per_contact = 0.25)",
        {"hours_per_day = 8.0": "hours_per_day = 0"},
        never="concierge",
    ),
    File(
        "capacity.concierge.hours_per_day",
        "0.2",
        "no concierge is ever made",
        {"hours_per_day = 8.0": "hours_per_day = 0.2"},
        never="concierge",
    ),
    File(
        "capacity.concierge.hours_per_day",
        "8.0",
        "(hours_per_contact = 8.5)",
        {"hours_per_contact = 0.25": "hours_per_contact = 8.5"},
        never="concierge",
    ),
    File(
        "capacity.offer.hours_per_day",
        "1.0",
        "no offer is ever made",
        {"[capacity.concierge]": "[capacity.offer]\nhours_per_day = 1\nhours_per_contact = 2\n[capacity.concierge]"},
        never="offer",
    ),
    # when and whom
    File(
        "contact.min_gap_days",
        "8.0",
        "the climb waits for the gap",
        {"min_gap_days = 3.0": "min_gap_days = 8"},
        ("caps.0.days", "caps.1.days"),
    ),
    File("contact.min_gap_days", "3.0", "longer than climb_after_days = 2.0", {"climb_after_days = 7.0": "climb_after_days = 2.0"}),
    File("contact.ladder_days", "7.0", "nobody ever climbs", {"ladder_days = 90.0": "ladder_days = 7"}),
    File(
        "contact.min_churn_probability", "0.0", "nobody is ever of low risk", {"min_churn_probability = 0.40": "min_churn_probability = 0"}
    ),
    File(
        "contact.min_churn_probability",
        "1.0",
        "whose probability is below 1",
        {"min_churn_probability = 0.40": "min_churn_probability = 1"},
        never="any",
    ),
    File("consent.unknown", "'allow'", "many laws ask for consent", {'unknown = "deny"': 'unknown = "allow"'}),
    # effects
    File("effects.high_value.offer", "0.07", "less than nudge = 0.08, which costs no more", {"offer = 0.24": "offer = 0.07"}),
    File("effects.price_sensitive.concierge", "0.37", "less than offer = 0.38", {"concierge = 0.38": "concierge = 0.37"}),
    File(
        "effects.silent.offer",
        "0.01",
        "less than nudge = 0.08",
        {"[effects.silent]\nnudge = 0.08\noffer = 0.12": "[effects.silent]\nnudge = 0.08\noffer = 0.01"},
    ),
    File("effects.high_value.nudge", "0.0", NO_EFFECT, {"nudge = 0.08": "nudge = 0"}),
    File(
        "effects.new.concierge",
        "0.0",
        NO_EFFECT,
        {"nudge = 0.13\noffer = 0.27\nconcierge = 0.27": "nudge = 0.13\noffer = 0.27\nconcierge = 0"},
    ),
    File(
        "effects.standard.nudge",
        "0.08",
        "less than offer = 0.12",
        {"nudge = 0.05": "nudge = 4.0"},
        tuple(f"effects.{s}.nudge" for s in ("high_value", "price_sensitive", "new", "silent", "loyal")),
    ),
    # quiet hours
    File("quiet_hours.channels", "[]", "the quiet hours never count", {'channels = ["push", "sms", "wechat", "call"]': "channels = []"}),
    File(
        "quiet_hours.channels",
        "['call']",
        "no rule uses such",
        {'"push", "sms", "wechat", "call"': '"call"'},
        ("caps.2.channel",),
        everywhere=WITHOUT_CALLS,
    ),
    File("quiet_hours.end", "'17:30:00'", "20.5 of 24 hours are quiet", {'end = "08:00"': 'end = "17:30"'}),
    File("quiet_hours.end", "'20:59:00'", "23.98 of 24 hours are quiet", {'end = "08:00"': 'end = "20:59"'}),
    File("quiet_hours.end", "'23:00:00'", "22 of 24 hours", {'start = "21:00"': 'start = "01:00"', 'end = "08:00"': 'end = "23:00"'}),
    # rules
    File(
        "rules.3.offer",
        "'bundle with the first category, valid 7 days'",
        "never said: rules.2 names the tier and fits all",
        {FIRST_ORDER: GIFT + FIRST_ORDER},
        ("rules.4.offer",),
    ),
    File("rules.5.segment", "[]", "an empty list asks for nothing", {'segment = "high_value"': "segment = []"}),
]


@pytest.mark.parametrize("doubtful", DOUBTFUL, ids=str)
def test_a_doubtful_file_is_good_with_a_warning_of_each_doubt_and_no_other(
    doubtful: File, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    (tmp_path / "my_policy.toml").write_text(doubtful.text)
    code, said = told(capsys, monkeypatch, tmp_path / "my_policy.toml")
    good, *lines = said.splitlines()
    warnings = {line.removeprefix("warning: ").split(" = ")[0]: line for line in lines if line.startswith("warning: ")}
    assert code == 0
    assert "my_policy.toml: good." in good
    assert warnings[doubtful.key].startswith(f"warning: {doubtful.key} = {doubtful.value}: ")
    assert doubtful.rule in warnings[doubtful.key]
    assert set(warnings) == {doubtful.key, *doubtful.also}


def test_the_shipped_file_is_beyond_doubt() -> None:
    assert policy.doubts(policy.read()) == []


def made_up(rules: Policy) -> Situation:
    """Customers of every kind, with up to five contacts of the last months, under a policy."""
    rng = np.random.default_rng(14)
    known = [Standing({}, contacts(rng)) for _ in range(N)]
    segment = rng.integers(0, len(SEGMENTS), N)
    fields = standings(DecisionMoment(rules, NOW, ZoneInfo("UTC"), False), known, segment.tolist(), None)
    touched_NP = rng.random((N, len(TOUCHPOINTS))) < 0.1
    return Situation(rng.random(N) * 0.999, rng.lognormal(4, 2, N), segment, touched_NP, rng.random(N) * 400, **fields)


def contacts(rng: np.random.Generator) -> list[PastContact]:
    days_ago = sorted(rng.random(rng.integers(0, 6)) ** 2 * 150, reverse=True)
    return [
        PastContact(NOW - days * DAY_SECONDS, int(rng.integers(1, 4)), str(rng.choice(CHANNELS)), bool(rng.random() < 0.7))
        for days in days_ago
    ]


def decided(rules: Policy, most: int) -> set[str]:
    """Tiers and channels of the contacts that are made with at most so much left of each of a day's resources."""
    s = made_up(rules)
    left_K = np.minimum(rules.limits_units_K, most * policy.UNITS)
    options = decide.options(rules, s)
    assert not options.day_NT.any()
    tiers, found = decisions.afford(rules, options, np.zeros((1, len(rules.resources))), left_K[None])
    assert (rules.units_KT[:, tiers].sum(axis=1) <= left_K).all()
    rows = np.flatnonzero(tiers)
    return {TIERS[tier] for tier in tiers[rows]} | {CHANNELS[channel] for channel in found.channel_NT[rows, tiers[rows]]}


@pytest.mark.parametrize("most", [0, 5, 1_000_000])
@pytest.mark.parametrize("doubtful", DOUBTFUL, ids=str)
def test_a_doubtful_policy_decides_within_what_is_left_and_never_what_it_warns_of(doubtful: File, most: int) -> None:
    made = decided(policy.parse(doubtful.text, "x"), most)
    assert doubtful.never not in made
    if most:
        assert (made == set()) == (doubtful.never == "any")


def test_the_shipped_policy_makes_all_that_the_doubtful_ones_never_make() -> None:
    assert decided(policy.read(), 1_000_000) >= {one.never for one in DOUBTFUL if one.never not in (None, "any")}


@pytest.mark.parametrize("doubtful", [one for one in DOUBTFUL if one.key.startswith("effects")], ids=str)
def test_the_gain_of_a_tier_that_is_said_never_to_pay_is_never_the_highest(doubtful: File) -> None:
    rules = policy.parse(doubtful.text, "x")
    s, (_, segment, tier) = made_up(rules), doubtful.key.split(".")
    gains_NT = decide.gains(rules, s.p, s.value, s.segment)[s.segment == [one.value for one in SEGMENTS].index(segment)]
    others_NT = np.delete(gains_NT, TIERS.index(tier), axis=1)
    assert (gains_NT[:, TIERS.index(tier)] <= others_NT.max(axis=1)).all()


@pytest.mark.parametrize("doubtful", [one for one in DOUBTFUL if "never binds" in str(policy.doubts(policy.parse(one.text, "x")))], ids=str)
def test_a_cap_that_is_said_never_to_bind_changes_nobodys_options(doubtful: File) -> None:
    rules = policy.parse(doubtful.text, "x")
    idle = [doubt.key for doubt in policy.doubts(rules) if "never binds" in doubt.rule]
    for place in {int(key.split(".")[1]) for key in idle}:
        kept = tuple(one for other, one in enumerate(rules.caps) if other != place)
        without = rules.model_copy(update={"caps": kept})
        before, after = decide.options(rules, made_up(rules)), decide.options(without, made_up(without))
        np.testing.assert_array_equal(before.blocked_NT, after.blocked_NT)
        open_NT = before.blocked_NT == 0
        np.testing.assert_array_equal(before.channel_NT[open_NT], after.channel_NT[open_NT])
