"""Many ids -> one person: connected components of identities seen together, as known at each snapshot.

Computed in DuckDB, which spills: every node takes the smallest label among itself and its neighbours, then the label of
its label, until nothing changes (Shiloach and Vishkin 1982: a number of rounds that grows with the logarithm of the
longest chain). An identity seen with too many customers is taken to be shared and links nobody; a component with too
many customers is left apart. Both are counted. A link known after a snapshot is not there at it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import duckdb

from features.mapping import Identity

_LINKS = """CREATE OR REPLACE TEMP TABLE links AS
    SELECT left_id AS a, right_id AS b, left_kind = 'customer' AS a_customer, right_kind = 'customer' AS b_customer,
           min(greatest(seen_at, arrived_at)) AS known_at
    FROM identities WHERE left_id IS NOT NULL AND right_id IS NOT NULL AND left_id <> right_id GROUP BY ALL"""
_PRUNE = """DELETE FROM links WHERE a IN (SELECT node FROM leaves) OR b IN (SELECT node FROM leaves)"""
_LEAVES = """CREATE OR REPLACE TEMP TABLE leaves AS
    SELECT node FROM (SELECT a AS node, b AS other, a_customer AS customer FROM links UNION SELECT b, a, b_customer FROM links)
    WHERE NOT customer GROUP BY node HAVING count(*) = 1"""
_BOTH_WAYS = """CREATE OR REPLACE TEMP TABLE edges AS
    SELECT a, b, a_customer, b_customer FROM links WHERE known_at <= $1
    UNION SELECT b, a, b_customer, a_customer FROM links WHERE known_at <= $1"""
_SHARED = """CREATE OR REPLACE TEMP TABLE shared AS
    SELECT a FROM edges WHERE NOT a_customer GROUP BY a HAVING count(DISTINCT b) FILTER (b_customer) > $1"""
_CUT = "DELETE FROM edges WHERE a IN (SELECT a FROM shared) OR b IN (SELECT a FROM shared)"
_NEAREST = """CREATE OR REPLACE TEMP TABLE next AS
    SELECT l.node, least(l.label, coalesce(min(n.label), l.label)) AS label
    FROM labels l LEFT JOIN edges e ON e.a = l.node LEFT JOIN labels n ON n.node = e.b GROUP BY l.node, l.label"""
_JUMP = """CREATE OR REPLACE TEMP TABLE jumped AS
    SELECT n.node, m.label FROM next n JOIN next m ON m.node = n.label"""


@dataclass(frozen=True)
class Joined:
    """What the joining found at the last snapshot: counts only."""

    customers: int
    """Customer ids that belong to a person with several."""
    persons: int
    """Persons with several customer ids."""
    shared: int
    """Identities taken to be shared, which link nobody."""
    cut: int
    """Components with too many customers, left apart."""


def join(connection: duckdb.DuckDBPyConnection, moments: Sequence[datetime], guards: Identity) -> Joined:
    """Write the tables ``persons`` (moment, customer_id, person_id) and ``hull`` (customer_id, person_id).

    ``persons`` tells, for each snapshot, the person of each customer id known then to belong to one with several; a person
    is named after the smallest of its customer ids. ``hull`` tells who has to be folded together: everybody ever joined.
    """
    connection.execute("CREATE OR REPLACE TEMP TABLE persons (moment TIMESTAMP, customer_id VARCHAR, person_id VARCHAR)")
    connection.execute(_LINKS)
    _prune(connection)
    shared = cut = 0
    for moment in sorted(moments):
        connection.execute(_BOTH_WAYS, [moment])
        connection.execute(_SHARED, [guards.max_customers])
        connection.execute(_CUT)
        shared = _count(connection, "shared")
        connection.execute("CREATE OR REPLACE TEMP TABLE customers_here AS SELECT DISTINCT a AS customer_id FROM edges WHERE a_customer")
        _components(connection)
        cut = _write_persons(connection, moment, guards.max_component)
    _hull(connection)
    last = "SELECT count(*), count(DISTINCT person_id) FROM persons WHERE moment = (SELECT max(moment) FROM persons)"
    customers, persons = connection.sql(last).fetchall()[0]
    return Joined(int(customers), int(persons), shared, cut)


def _prune(connection: duckdb.DuckDBPyConnection) -> None:
    """Drop what can link nobody at any time: identities seen with a single other. Most are; it changes no component of customers."""
    while True:
        connection.execute(_LEAVES)
        if not _count(connection, "leaves"):
            return
        connection.execute(_PRUNE)


def _components(connection: duckdb.DuckDBPyConnection) -> None:
    """Give each node of ``edges`` the smallest node of its component as ``labels.label``."""
    connection.execute("CREATE OR REPLACE TEMP TABLE labels AS SELECT DISTINCT a AS node, a AS label FROM edges")
    while True:
        connection.execute(_NEAREST)
        connection.execute(_JUMP)
        changed = "SELECT count(*) FROM labels l JOIN jumped j USING (node) WHERE l.label <> j.label"
        done = not connection.sql(changed).fetchall()[0][0]
        connection.execute("CREATE OR REPLACE TEMP TABLE labels AS SELECT * FROM jumped")
        if done:
            return


def _write_persons(connection: duckdb.DuckDBPyConnection, moment: datetime, max_component: int) -> int:
    """Append the persons of one snapshot; returns how many components were too large."""
    connection.execute(
        """CREATE OR REPLACE TEMP TABLE sizes AS SELECT label, count(*) AS customers, min(node) AS person_id
           FROM labels JOIN customers_here ON node = customer_id GROUP BY label HAVING count(*) > 1"""
    )
    connection.execute(
        """INSERT INTO persons SELECT $1, customer_id, person_id FROM customers_here
           JOIN labels ON node = customer_id JOIN sizes USING (label) WHERE customers <= $2""",
        [moment, max_component],
    )
    return int(connection.execute("SELECT count(*) FROM sizes WHERE customers > $1", [max_component]).fetchall()[0][0])


def _hull(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(
        """CREATE OR REPLACE TEMP TABLE edges AS
           SELECT customer_id AS a, person_id AS b FROM persons WHERE customer_id <> person_id
           UNION SELECT person_id, customer_id FROM persons WHERE customer_id <> person_id"""
    )
    _components(connection)
    connection.execute("CREATE OR REPLACE TEMP TABLE hull AS SELECT node AS customer_id, label AS person_id FROM labels")


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    return int(connection.sql(f"SELECT count(*) FROM {table}").fetchall()[0][0])
