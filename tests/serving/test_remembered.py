"""What batch, service and simulation remember of a customer is the same: contacts of a year, of two words on a consent the withdrawal."""

from datetime import datetime, timedelta

import duckdb
import pytest
from pydantic import ValidationError

from serving import load, simulation
from serving.policy import REMEMBERED_DAYS, Cap

LAST = datetime(2026, 1, 1)


@pytest.mark.parametrize("first", [True, False])
def test_of_two_consents_at_one_moment_the_withdrawal_wins_in_service_and_simulation(first: bool) -> None:
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE consents (customer_id TEXT, purpose TEXT, channel TEXT, granted BOOLEAN, changed_at TIMESTAMP, arrived_at TIMESTAMP)"
        )
        for granted in (first, not first):
            connection.execute("INSERT INTO consents VALUES ('a', 'marketing', NULL, $1, $2, $2)", [granted, LAST])
        connection.execute("CREATE SCHEMA moments; CREATE VIEW moments.consents AS FROM main.consents")
        ((*_, loaded, _),) = load._consents(connection)
        ((*_, simulated, _),) = connection.execute(simulation._CONSENTS, [LAST]).fetchall()
    assert (loaded, simulated) == (False, False)


def test_contacts_are_remembered_as_long_as_a_policy_may_look_back() -> None:
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE orders (customer_id TEXT, ordered_at TIMESTAMP, arrived_at TIMESTAMP)")
        connection.execute(
            "CREATE TABLE contacts (contact_id TEXT, decision_id TEXT, customer_id TEXT, sent_at TIMESTAMP, arrived_at TIMESTAMP, tier INT, channel TEXT, clicked_at TIMESTAMP,"
            " converted_at TIMESTAMP, response_arrived_at TIMESTAMP)"
        )
        for days in (1, 121, REMEMBERED_DAYS - 1, REMEMBERED_DAYS + 1):
            connection.execute(
                "INSERT INTO contacts VALUES ($2, NULL, 'a', $1, $1, 1, 'sms', NULL, NULL, NULL)", [LAST - timedelta(days=days), str(days)]
            )
        connection.execute("CREATE SCHEMA moments")
        for name in ("orders", "contacts"):
            connection.execute(f"CREATE VIEW moments.{name} AS FROM main.{name}")
        loaded = list(load._contacts(connection, LAST))
        simulated = connection.execute(simulation._CONTACTS, [LAST, LAST - timedelta(days=REMEMBERED_DAYS), ["sms"]]).fetchall()
    assert (len(loaded), len(simulated)) == (3, 3)
    with pytest.raises(ValidationError):
        Cap(channel="any", contacts=1, days=REMEMBERED_DAYS + 1)
