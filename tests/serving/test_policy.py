"""The policy file: every wrong key is named with its fix, no rule is out of reach, and what counts is what it says, not how it is written."""

import tomllib
from typing import Any

import pytest

from features.errors import InputError
from serving import policy
from serving.policy import Policy, Segment, differences, parse, read

TEXT = policy.default_file().read_text(encoding="utf-8")


def shipped_with(**sections: Any) -> Policy:
    """The shipped policy with other sections; None leaves one out."""
    told = {**tomllib.loads(TEXT), **sections}
    return Policy(**{name: value for name, value in told.items() if value is not None})


def refused(before: str, after: str) -> str:
    """What is said of the shipped file with one text replaced, which must be there."""
    assert TEXT.count(before) >= 1
    with pytest.raises(InputError) as found:
        parse(TEXT.replace(before, after, 1), "my_policy.toml")
    assert str(found.value).startswith("my_policy.toml: ")
    assert "fix: " in str(found.value)
    return str(found.value)


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("margin = 0.35", "margin = 1.35", "value.margin = 1.35"),
        ("margin = 0.35", "margn = 0.35", "value.margn: is no key of a policy"),
        ("margin = 0.35", "", "value.margin: is missing"),
        ("margin = 0.35", 'margin = "0.35"', "value.margin = '0.35'"),
        ("margin = 0.35", "margin = nan", "value.margin = nan"),
        ("lifetime_years = 1.0", "lifetime_years = inf", "value.lifetime_years = inf"),
        ("min_churn_probability = 0.40", "min_churn_probability = 40", "contact.min_churn_probability = 40"),
        ("min_gap_days = 3.0", "min_gap_days = -3.0", "contact.min_gap_days = -3.0"),
        ("ladder_days = 90.0", "ladder_days = 0.0", "contact.ladder_days = 0.0"),
        ("silence_days = 330.0", "silence_days = 0.0", "unrecoverable.silence_days = 0.0"),
        ('unknown = "deny"', 'unknown = "maybe"', "consent.unknown = 'maybe'"),
        ('start = "21:00"', 'start = "25:00"', "quiet_hours.start = '25:00'"),
        ("per_day = 1000.0", "per_day = -1.0", "budget.per_day = -1.0"),
        ("hours_per_contact = 0.25", "hours_per_contact = 0.0", "capacity.concierge.hours_per_contact = 0.0"),
        ("[capacity.concierge]", "[capacity.advisor]", "capacity.advisor"),
        ("contacts = 2", "contacts = -2", "caps.0.contacts = -2"),
        ('channel = "sms"', 'channel = "letter"', "caps.0.channel = 'letter'"),
        ('segment = "price_sensitive"', 'segment = "rich"', "caps.0.segment = 'rich'"),
        ("nudge = 0.05", "nudge = -0.05", "costs.nudge = -0.05"),
        ("concierge = 0.42", "concierge = 42", "effects.high_value.concierge = 42"),
        ('touchpoint = "complaint_open"', 'touchpoint = "complaint"', "rules.0.touchpoint"),
        ('occasion = "anniversary"', 'occasion = "birthday"', "rules.3.occasion"),
        ('reason = "price"', 'reason = "cheap"', "rules.10.reason"),
        ('channels = ["call", "wechat"]', 'channels = ["phone"]', "rules.0.concierge.channels"),
        ('channels = ["call", "wechat"]', "channels = []", "rules.0.concierge.channels"),
        ("schema = 2", "schema = 1", "schema = 1"),
        ('effects_source = "assumed"', 'effects_source = "guessed"', "effects_source = 'guessed'"),
        ("[value]", "[value", "is not TOML"),
    ],
)
def test_a_wrong_key_is_named_with_its_value_and_the_fix(before: str, after: str, named: str) -> None:
    assert named in refused(before, after)


def test_all_wrong_keys_are_named_at_once() -> None:
    with pytest.raises(InputError) as found:
        parse(TEXT.replace("margin = 0.35", "margin = 2").replace("per_day = 1000.0", "per_day = -1.0"), "x")
    assert "value.margin = 2" in str(found.value)
    assert "budget.per_day = -1.0" in str(found.value)


def test_a_missing_segment_is_named() -> None:
    effects = {name: value for name, value in tomllib.loads(TEXT)["effects"].items() if name != "loyal"}
    with pytest.raises(ValueError, match=r"lacks the segment\(s\) loyal: add \[effects.loyal\]"):
        shipped_with(effects=effects)


ALL = {tier: {"strategy": "hello", "channels": ["e-mail"]} for tier in ("nudge", "offer", "concierge")}


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([ALL, {"segment": "new", **ALL}, ALL], "rule 1 fits everybody, so that no later one is ever reached"),
        ([{"segment": "new"}, ALL], "rule 1 names no tier"),
        ([{"segment": "new", **ALL}], "the last rule must fit everybody"),
        ([{"nudge": ALL["nudge"], "offer": ALL["offer"]}], "the last rule must fit everybody and name all three tiers"),
        ([], "at least 1 item"),
    ],
)
def test_rules_that_cannot_be_reached_or_are_missing_are_refused(rules: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        shipped_with(rules=rules)


def test_one_word_is_a_list_of_one() -> None:
    one = shipped_with(rules=[{"segment": "new", **ALL}, ALL])
    listed = shipped_with(rules=[{"segment": ["new"], **ALL}, ALL])
    assert one.rules[0].segment == (Segment.NEW,)
    assert one.digest == listed.digest


def test_the_digest_hangs_on_neither_comments_nor_the_order_of_keys() -> None:
    bare = "\n".join(line.split(" #")[0] for line in TEXT.splitlines() if not line.startswith("#"))
    turned = bare.replace("nudge = 0.05\noffer = 4.00", "offer = 4\nnudge = 0.050")
    assert turned != bare != TEXT
    assert parse(turned, "x").digest == parse(bare, "x").digest == read().digest


@pytest.mark.parametrize(("before", "after"), [("offer = 4.00", "offer = 4.01"), ('"stepped coupons"', '"coupons"'), ("2026-11-25", "b")])
def test_the_digest_hangs_on_every_value(before: str, after: str) -> None:
    assert parse(TEXT.replace(before, after, 1), "x").digest != read().digest


def test_differences_name_each_value_that_differs_and_nothing_else() -> None:
    other = TEXT.replace("margin = 0.35", "margin = 0.5").replace("offer = 4.00", "offer = 5.0")
    other = other.replace("[budget] ", "# ").replace("per_day = 1000.0", "")
    found = {key: (before, after) for key, before, after in differences(read(), parse(other, "x"))}
    assert found == {"value.margin": (0.35, 0.5), "costs.offer": (4.0, 5.0), "budget.per_day": (1000.0, None)}
    assert list(differences(read(), parse(TEXT, "y"))) == []


def test_resources_name_what_a_day_has_and_what_each_tier_uses() -> None:
    found = read()
    assert found.resources == ("budget", "concierge")
    assert found.use_KT.tolist() == [[0.0, 0.05, 4.0, 20.0], [0.0, 0.0, 0.0, 0.25]]
    assert found.limits_K.tolist() == [1000.0, 8.0]
    free = shipped_with(budget=None, capacity={})
    assert (free.resources, free.use_KT.shape, free.limits_K.shape) == ((), (0, 4), (0,))


def test_amounts_are_exact_in_whole_millionths_where_binary_numbers_are_not() -> None:
    big = shipped_with(budget={"per_day": 4_000_000_000.000001}, costs={"nudge": 0.1, "offer": 0.29, "concierge": 1.000001})
    assert (read().units_KT.tolist(), read().limits_units_K.tolist()) == (
        [[0, 50_000, 4_000_000, 20_000_000], [0, 0, 0, 250_000]],
        [10**9, 8 * 10**6],
    )
    assert big.units_KT[0].tolist() == [0, 100_000, 290_000, 1_000_001]
    assert big.limits_units_K[0] == 4_000_000_000_000_001
    assert big.limits_units_K.dtype == big.units_KT.dtype == "int64"
    free = shipped_with(budget=None, capacity={})
    assert (free.units_KT.shape, free.limits_units_K.shape) == ((0, 4), (0,))


def test_what_a_failed_contact_gives_back_may_be_left_out_as_older_files_do() -> None:
    older = shipped_with(failed=None)
    assert (older.failed.cost, older.failed.hours) == ("returned", "spent")
    assert older.digest == read().digest
    assert shipped_with(failed={"cost": "spent"}).digest != read().digest
    assert shipped_with(failed={"cost": "spent"}).failed.hours == "spent"


def test_a_policy_of_the_log_is_read_though_its_file_would_be_refused_today() -> None:
    kept = shipped_with(consent={"purpose": "E-mail", "unknown": "deny", "untracked": "deny"}).model_dump(mode="json", by_alias=True)
    assert Policy.model_validate(kept, strict=False).consent.purpose == "E-mail"


def test_quiet_hours_have_no_zone_of_their_own() -> None:
    assert "quiet_hours.start" in refused('start = "21:00"', 'start = "21:00+02:00"')


def test_a_rule_hidden_by_an_earlier_one_is_refused() -> None:
    with pytest.raises(ValueError, match="never reached"):
        shipped_with(rules=[{"segment": "new", **ALL}, {"segment": "new", "reason": "price", **ALL}, ALL])


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Any) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"bytes\.toml: cannot be read"):
        read(tmp_path / "bytes.toml")
