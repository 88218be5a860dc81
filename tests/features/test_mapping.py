"""Errors in a mapping file name the file, the key, the bad value and the fix."""

import re
from pathlib import Path

import pytest

from features import mapping
from features.errors import InputError
from features.mapping import template
from features.schema import SOURCES

GOOD = """
name = "shop"
timezone = "Europe/Berlin"
currency = "EUR"
[tables.orders]
path = "orders.csv"
[tables.orders.columns]
order_id = "id"
customer_id = "who"
ordered_at = "at"
"""


def read(folder: Path, text: str) -> mapping.Dataset:
    file = folder / "shop.toml"
    file.write_text(text)
    return mapping.read(file)


def test_a_short_file_gets_the_domain_defaults(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD)
    assert (found.churn.horizon_days, found.churn.lookback_days) == (90, 365)
    assert found.segments.high_value_per_year == 5000


def test_the_template_of_init_is_a_valid_mapping_file(tmp_path: Path) -> None:
    assert read(tmp_path, template(Path("x.toml"))).name == "my_shop"


def test_the_template_stays_valid_with_every_example_switched_on(tmp_path: Path) -> None:
    lines = [re.sub(r'^# (\[|"|\w+ *= )', r"\1", line) for line in template(Path("x.toml")).splitlines()]
    found = read(tmp_path, "\n".join(lines))
    assert set(found.tables) == set(SOURCES)
    assert all(set(table.columns) == {column.name for column in SOURCES[name].columns} for name, table in found.tables.items())


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('timezone = "Europe/Berlin"', 'timezone = "Europe/Berln"', ["timezone", "'Europe/Berln'", "did you mean 'Europe/Berlin'"]),
        ('currency = "EUR"', 'currency = "euro"', ["currency", "'euro'"]),
        ('name = "shop"', 'name = "My Shop"', ["name", "'My Shop'"]),
        ('path = "orders.csv"', "", ["tables.orders", "path"]),
        ('path = "orders.csv"', 'pth = "orders.csv"', ["pth", "rename it to 'path'"]),
        ('order_id = "id"', "", ["lacks order_id"]),
        ('order_id = "id"', 'order_id = "id"\nemail = "mail"', ["tables.orders.columns.email", "no canonical column"]),
        ("[tables.orders", "[tables.oders", ["[tables.oders] is no source", "orders"]),
        ("[tables.orders]", "[churn]\nhorizon_days = -3\n[tables.orders]", ["churn.horizon_days = -3"]),
        ("[tables.orders]", '[churn]\nlookback_days = "year"\n[tables.orders]', ["churn.lookback_days = 'year'"]),
        ("[tables.orders]", "[tables.orders", ["TOML"]),
    ],
)
def test_an_error_names_file_key_value_and_fix(tmp_path: Path, old: str, new: str, told: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, GOOD.replace(old, new))
    message = str(caught.value)
    assert all(part in message for part in ["shop.toml", "fix: ", *told]), message


def test_a_missing_file_points_to_init(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holdfast init"):
        mapping.read(tmp_path / "nowhere.toml")
