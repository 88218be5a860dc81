"""Wrong policy files: each is refused by `holdfast policy check` with its key, its value, the rule and a fix."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from features.cli import main
from serving import policy

TEXT = policy.default_file().read_text(encoding="utf-8")


@dataclass(frozen=True)
class File:
    """The shipped file with some texts replaced, and what must be said of it."""

    key: str
    value: str
    rule: str
    changes: dict[str, str]
    also: tuple[str, ...] = ()
    never: str | None = None
    everywhere: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        text = TEXT
        for before, after in self.changes.items():
            assert before in text
            text = text.replace(before, after, 1)
        for before, after in self.everywhere.items():
            text = text.replace(before, after)
        return text

    def __str__(self) -> str:
        return f"{self.key} = {self.value}"


CAP = '[[caps]]\nchannel = "{}"\ncontacts = {}\ndays = {}\n{}\n'
FIRST_CAP = "[[caps]]  "
CALLS, SECOND = '["call", "wechat"]', 'channels = ["e-mail", "push"]'
MOST = "at most 9,000,000,000"
MILLIONTHS = "whole millionths"
HUGE = "larger than any number that is counted here"


def cap(channel: str, contacts: object, days: object, more: str = "") -> dict[str, str]:
    """The shipped file with one cap more, before the others: it is caps.0."""
    return {FIRST_CAP: CAP.format(channel, contacts, days, more) + FIRST_CAP}


REFUSED = [
    # amounts: exact in whole millionths
    File("budget.per_day", "9000000000.1", f"{MOST}; leave the section out for no limit", {"per_day = 1000.0": "per_day = 9000000000.1"}),
    File("budget.per_day", "1e+300", f"{MOST}; leave the section out for no limit", {"per_day = 1000.0": "per_day = 1e300"}),
    File("budget.per_day", "9000000001.0", MOST, {"per_day = 1000.0": "per_day = 9_000_000_001"}),
    File("budget.per_day", "1" + "0" * 79, HUGE, {"per_day = 1000.0": "per_day = 1" + "0" * 400}),
    File("budget.per_day", "a number of thousands of digits", HUGE, {"per_day = 1000.0": "per_day = 0x1" + "0" * 5000}),
    File("budget.per_day", "inf", "finite", {"per_day = 1000.0": "per_day = inf"}),
    File("budget.per_day", "nan", "finite", {"per_day = 1000.0": "per_day = nan"}),
    File("budget.per_day", "-0.5", "greater than or equal to 0", {"per_day = 1000.0": "per_day = -0.5"}),
    File("budget.per_day", "4e-07", MILLIONTHS, {"per_day = 1000.0": "per_day = 4e-7"}),
    File("budget.per_day", "1000.0000015", MILLIONTHS, {"per_day = 1000.0": "per_day = 1000.0000015"}),
    File("budget.per_day", "True", "valid number", {"per_day = 1000.0": "per_day = true"}),
    File("costs.nudge", "4e-07", MILLIONTHS, {"nudge = 0.05": "nudge = 4e-7"}),
    File("costs.nudge", "1.5e-06", MILLIONTHS, {"nudge = 0.05": "nudge = 0.0000015"}),
    File("costs.offer", "4.00000001", MILLIONTHS, {"offer = 4.00": "offer = 4.00000001"}),
    File("costs.offer", "9000000000.5", MOST, {"offer = 4.00": "offer = 9_000_000_000.5"}),
    File("costs.concierge", "1e+20", MOST, {"concierge = 20.00": "concierge = 100_000_000_000_000_000_000"}),
    File("costs.concierge", "1" + "0" * 79, HUGE, {"concierge = 20.00": "concierge = 1" + "0" * 400}),
    File("costs.concierge", "-20.0", "greater than or equal to 0", {"concierge = 20.00": "concierge = -20.0"}),
    File("capacity.concierge.hours_per_day", "1000000.5", "at most 1,000,000", {"hours_per_day = 8.0": "hours_per_day = 1_000_000.5"}),
    File("capacity.concierge.hours_per_day", "8.0000001", MILLIONTHS, {"hours_per_day = 8.0": "hours_per_day = 8.0000001"}),
    File("capacity.concierge.hours_per_contact", "2000000.0", "at most 1,000,000", {"hours_per_contact = 0.25": "hours_per_contact = 2e6"}),
    File("capacity.concierge.hours_per_contact", "1e-07", MILLIONTHS, {"hours_per_contact = 0.25": "hours_per_contact = 1e-7"}),
    File("capacity.concierge.hours_per_contact", "0.3333333", MILLIONTHS, {"hours_per_contact = 0.25": "hours_per_contact = 0.3333333"}),
    File("value.lifetime_years", "1e+308", "at most 1,000", {"lifetime_years = 1.0": "lifetime_years = 1e308"}),
    File("caps.0.contacts", "1" + "0" * 79, "at most 1,000,000; leave", {"contacts = 2": "contacts = 1" + "0" * 400}),
    File("caps.0.contacts", "2000000", "at most 1,000,000; leave", {"contacts = 2": "contacts = 2_000_000"}),
    File("unrecoverable.silence_days", "1" + "0" * 79, HUGE, {"silence_days = 330.0": "silence_days = 1" + "0" * 400}),
    File("schema", "1" + "0" * 79, HUGE, {"schema = 2": "schema = 1" + "0" * 400}),
    # the purpose of consents
    File("consent.purpose", "'Marketing'", "small letters", {'purpose = "marketing"': 'purpose = "Marketing"'}),
    File("consent.purpose", "''", "small letters", {'purpose = "marketing"': 'purpose = ""'}),
    File("consent.purpose", "'e-mail'", "small letters", {'purpose = "marketing"': 'purpose = "e-mail"'}),
    File("consent.purpose", "'marketing '", "small letters", {'purpose = "marketing"': 'purpose = "marketing "'}),
    File("consent.purpose", r"'marketing\n'", "small letters", {'purpose = "marketing"': r'purpose = "marketing\n"'}),
    File("consent.purpose", "'_marketing'", "a letter first", {'purpose = "marketing"': 'purpose = "_marketing"'}),
    File("consent.purpose", f"'{'m' * 33}'", "at most 32", {'purpose = "marketing"': f'purpose = "{"m" * 33}"'}),
    File("consent.purpose", "1", "valid string", {'purpose = "marketing"': "purpose = 1"}),
    File("consent.unknown", "True", "'deny' or 'allow'", {'unknown = "deny"': "unknown = true"}),
    # one word twice, nothing at all
    File("rules.0.concierge.channels", "['call', 'call']", "names call more than once", {CALLS: '["call", "call"]'}),
    File("rules.0.nudge.channels", "['push', 'e-mail', 'push']", "names push more", {SECOND: 'channels = ["push", "e-mail", "push"]'}),
    File("quiet_hours.channels", "['sms', 'sms']", "names sms more", {'["push", "sms", "wechat", "call"]': '["sms", "sms"]'}),
    File(
        "rules.1.touchpoint",
        "['refund_late', 'refund_late']",
        "more than once",
        {'"refund_late", "delivery_late"': '"refund_late", "refund_late"'},
    ),
    File("rules.9.segment", "['silent', 'silent']", "names silent", {'segment = ["silent", "standard"]': 'segment = ["silent", "silent"]'}),
    File("rules.10.reason", "['price', 'price']", "names price", {'reason = "price"': 'reason = ["price", "price"]'}),
    File(
        "rules.3.occasion",
        "['anniversary', 'anniversary']",
        "more than once",
        {'occasion = "anniversary"': 'occasion = ["anniversary", "anniversary"]'},
    ),
    File("rules.0.nudge.strategy", "' '", "says nothing", {"apology with the state of the complaint": " "}),
    File("rules.0.nudge.strategy", "''", "at least 1 character", {"apology with the state of the complaint": ""}),
    File("version", "'  '", "says nothing", {'version = "2026-11-25"': 'version = "  "'}),
    File(
        "caps.2.contacts",
        "4",
        "caps.1 is of the same channel, segment and days",
        {'channel = "call"\ncontacts = 1\ndays = 30.0': 'channel = "sms"\ncontacts = 4\ndays = 7'},
    ),
    File("caps.1.contacts", "2", "caps.0 is of the same", cap("sms", 2, 7, 'segment = "price_sensitive"')),
    File("caps.0.days", "400", "less than or equal to 366", cap("any", 9, 400)),
    File("caps.0.contacts", "1.5", "valid integer", {"contacts = 2": "contacts = 1.5"}),
    # moments and days
    File("quiet_hours.end", "'21:00:00'", "leave the section out for no quiet hours", {'end = "08:00"': 'end = "21:00"'}),
    File("quiet_hours.end", "'00:00:00'", "never or always", {'start = "21:00"': "start = 00:00:00", 'end = "08:00"': 'end = "00:00"'}),
    File("quiet_hours.end", "'08:00+01:00'", "leave the offset out", {'end = "08:00"': 'end = "08:00+01:00"'}),
    File("contact.ladder_days", "6.9", "nobody would ever climb", {"ladder_days = 90.0": "ladder_days = 6.9"}),
    File("contact.ladder_days", "90.0", "shorter than climb_after_days = 1000.0", {"climb_after_days = 7.0": "climb_after_days = 1e3"}),
    File("contact.min_gap_days", "91.0", "the ladder would be forgotten", {"min_gap_days = 3.0": "min_gap_days = 91"}),
    File("contact.min_gap_days", "367", "less than or equal to 366", {"min_gap_days = 3.0": "min_gap_days = 367"}),
    File("contact.climb_after_days", "-1.0", "greater than or equal to 0", {"climb_after_days = 7.0": "climb_after_days = -1.0"}),
    # what a failed contact gives back
    File("failed.cost", "'kept'", "'returned' or 'spent'", {'cost = "returned"': 'cost = "kept"'}),
    File("failed.hours", "True", "'returned' or 'spent'", {'hours = "spent"': "hours = true"}),
]


def told(capsys: Any, monkeypatch: Any, file: Path) -> tuple[int, str]:
    """Exit code and words of `holdfast policy check FILE`."""
    monkeypatch.setattr(sys, "argv", ["holdfast", "policy", "check", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    out = capsys.readouterr()
    return int(ended.value.code or 0), out.out + out.err


@pytest.mark.parametrize("wrong", REFUSED, ids=str)
def test_a_wrong_file_is_refused_with_key_value_rule_and_fix(wrong: File, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    (tmp_path / "my_policy.toml").write_text(wrong.text)
    code, said = told(capsys, monkeypatch, tmp_path / "my_policy.toml")
    (line,) = [line for line in said.splitlines() if f"{wrong.key} = {wrong.value}" in line]
    assert code == 2
    assert wrong.rule in line
    assert "fix: " in said
    assert "good" not in said
