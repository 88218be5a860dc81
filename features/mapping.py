"""A data set is one mapping file (TOML). This is the contract by which a shop brings its data.

See `holdfast init` for a commented file, and README.md, "Bring your own data".
"""

import difflib
import math
import os
import tomllib
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import available_timezones

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from features import domain
from features.errors import InputError
from features.schema import SOURCES, Source

SAMPLE = "online_retail_ii"
"""Name of the embedded sample data set."""


def _known_timezone(name: str) -> str:
    if name not in available_timezones():
        close = difflib.get_close_matches(name, available_timezones(), n=1)
        raise ValueError("is no IANA time zone" + (f"; did you mean {close[0]!r}?" if close else ""))
    return name


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Table(_Part):
    """Where one source table lies and how its columns become the canonical ones."""

    path: str | None = Field(
        None, description="Parquet, CSV or Excel file(s), relative to the mapping file, or s3:// Parquet; globs allowed"
    )
    database: str | None = Field(None, description="DuckDB file or SQLAlchemy URL; $VARIABLES are expanded")
    table: str | None = Field(None, description="table in that database")
    query: str | None = Field(None, description="DuckDB SQL over the relations named in `files`: joins and unions")
    files: dict[str, str] = Field({}, description="name = path, for `query`")
    where: str | None = Field(None, description="SQL condition on the source's own columns")
    group_by: str | None = Field(None, description="SQL; several source rows make one canonical row")
    sheet: str | None = Field(None, description="sheet of an Excel workbook that has several")
    decimal: Literal[".", ","] | None = Field(None, description="decimal mark of numbers that are texts; default: as the column shows")
    time_format: str | None = Field(None, description="how times that are texts are written, as strptime has it; default: ISO 8601")
    duplicates: Literal["drop", "keep"] | None = Field(None, description="rows of a file that another file has too; default: refuse")
    columns: dict[str, str] = Field(description="canonical column = source column or SQL expression")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if sum(place is not None for place in (self.path, self.database, self.query)) != 1:
            raise ValueError('needs either path = "FILES", or database = "DB" with table = "NAME", or query = "SQL" with files')
        if self.database is not None and not self.table:
            raise ValueError('database = "DB" also needs table = "NAME"')
        if (self.query is None) != (not self.files):
            raise ValueError("query and files belong together")
        return self


class Churn(_Part):
    """The label: no order within ``horizon_days``, for customers silent for at most ``lookback_days``."""

    horizon_days: PositiveInt = domain.HORIZON_DAYS
    lookback_days: float = Field(domain.LOOKBACK_DAYS, gt=0, description="inf: every past buyer")


class Snapshots(_Part):
    """When predictions are made: every month (on the 1st) or every N days, up to the test snapshot."""

    first: date | None = Field(None, description="default: the first that lies one horizon after the first order")
    test: date | None = Field(None, description="default: the last whose label window is complete")
    every: Literal["month"] | PositiveInt = "month"
    complete_until: date | None = Field(None, description="last day with all its orders; default: the newest order's, strays left out")


class Segments(_Part):
    """Thresholds in the shop's currency."""

    high_value_per_year: float = Field(domain.HIGH_VALUE_PER_YEAR, gt=0)


class Identity(_Part):
    """Who is a customer. Guards against joining strangers: an identity shared by many customers is no evidence that they are one person."""

    fold_case: bool = Field(False, description="ids of customers that differ by case are one customer")
    not_customers: tuple[str, ...] = Field((), description="ids that stand for nobody (guest, ...); empty text: rows without an id")

    max_customers: PositiveInt = Field(domain.IDENTITY_MAX_CUSTOMERS, description="customers that one device, phone ... may link")
    max_component: PositiveInt = Field(domain.IDENTITY_MAX_COMPONENT, description="customers that may be one person")


class Contracts(_Part):
    """How strict the source contracts are."""

    freshness_days: float = Field(7, gt=0, description="age of a table's newest event against the newest of all")
    volume_factor: float = Field(4, gt=1, description="the last week's rows against the median of the eight weeks before")
    max_unmatched: float = Field(0.05, ge=0, le=1, description="share of a table's customers that no order knows")
    severity: dict[str, Literal["block", "warn", "off"]] = Field({}, description='by rule, "*" allowed: "orders.*.range" = "warn"')


class Promotion(_Part):
    """How large a test must be to decide which model goes into force; a smaller one answers unknown, which blocks."""

    min_rows: PositiveInt = Field(200, description="customers at the test snapshot")
    min_class: PositiveInt = Field(30, description="of them churned, and as many not")


class Dataset(_Part):
    """A parsed mapping file."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    timezone: Annotated[str, AfterValidator(_known_timezone)]
    currency: str = Field(pattern=r"^[A-Z]{3}$")
    model_name: str = Field("holdfast-churn", pattern=r"^[A-Za-z0-9_-]+$", description="name in the model registry")
    personal: bool = Field(True, description="false: public or synthetic ids, pseudonymised without a secret key")
    synthetic: bool = Field(False, description="true: made by `holdfast simulate`")
    churn: Churn = Churn()
    snapshots: Snapshots = Snapshots()
    segments: Segments = Segments()
    identity: Identity = Identity()
    contracts: Contracts = Contracts()
    promotion: Promotion = Promotion()
    tables: dict[str, Table]
    file: Path = Field(exclude=True)

    @model_validator(mode="after")
    def _known_tables(self) -> Self:
        for name, table in self.tables.items():
            if name not in SOURCES:
                raise ValueError(f"[tables.{name}] is no source; known: {', '.join(SOURCES)}")
            known = [column.name for column in SOURCES[name].columns]
            for column in table.columns:
                if column not in known:
                    raise ValueError(f"tables.{name}.columns.{column} is no canonical column; known: {', '.join(known)}")
            missing = [c.name for c in SOURCES[name].columns if c.required and c.name not in table.columns]
            if missing:
                raise ValueError(f"[tables.{name}.columns] lacks {', '.join(missing)}")
        absent = [name for name, source in SOURCES.items() if source.required and name not in self.tables]
        if absent:
            raise ValueError(f"lacks the table(s) {', '.join(absent)}: add [tables.{absent[0]}]")
        return self

    def resolve(self, path: str) -> str:
        """A path of the mapping file, relative to the file's folder."""
        expanded = os.path.expandvars(os.path.expanduser(path))
        return expanded if "://" in expanded or os.path.isabs(expanded) else str(self.file.parent / expanded)

    def definition(self) -> dict[str, Any]:
        """Everything that decides the data's meaning, as JSON (``inf`` as text)."""
        value = self.model_dump(mode="json")
        if math.isinf(self.churn.lookback_days):
            value["churn"]["lookback_days"] = "inf"
        return value


def sample_file() -> Path:
    """Mapping file of the embedded sample, Online Retail II."""
    return Path(str(resources.files("features") / "data" / f"{SAMPLE}.toml"))


def read(file: Path | None = None) -> Dataset:
    """Parse a mapping file (default: the embedded sample).

    Raises InputError naming the file, the key, the bad value and the fix.
    """
    file = file or sample_file()
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(str(file), "no such mapping file", "give a file, or write one with: holdfast init") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(str(file), f"cannot be read as TOML: {error}", "mend that place; `holdfast init` shows the form") from None
    try:
        return Dataset(**content, file=file.resolve())
    except ValidationError as error:
        raise InputError(str(file), "\n  ".join(map(_explain, error.errors())), _advice(error)) from None


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"]) or "file"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("missing", "value_error") and isinstance(problem["input"], dict):
        return f"{key}: {message}"
    return f"{key} = {problem['input']!r}: {message}"


def _advice(error: ValidationError) -> str:
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        parent, key = first["loc"][:-1], str(first["loc"][-1])
        model: Any = {
            "churn": Churn,
            "snapshots": Snapshots,
            "segments": Segments,
            "identity": Identity,
            "contracts": Contracts,
            "promotion": Promotion,
            "tables": Table,
        }.get(str(parent[0]) if parent else "", Dataset)
        close = difflib.get_close_matches(key, model.model_fields, n=1)
        known = ", ".join(name for name in model.model_fields if name != "file")
        return f"rename it to {close[0]!r}" if close else f"remove it; known keys: {known}"
    return "correct the key in the mapping file; `holdfast init` writes a commented example"


TEMPLATE = """\
# Holdfast mapping file: how this shop's tables become the canonical ones.
# Run it with:  HOLDFAST_ID_KEY=$(cat id.key) holdfast run --dataset {file}
# Make the key once and keep it as you keep a password:  openssl rand -hex 32 > id.key

name = "my_shop"              # a-z, 0-9 and _; names the folder of the data set's state
timezone = "Europe/Berlin"    # IANA name; times without a zone are taken to be local, others are converted
currency = "EUR"              # ISO 4217; amounts below are in whole units of it
# model_name = "holdfast-churn" # name in the model registry; give each shop that shares a registry its own
# personal = true             # false only for public or synthetic ids: no secret key is then needed

[churn]
horizon_days = 90             # churned: no order in the next 90 days
lookback_days = 365           # leave out customers silent for longer; inf: every past buyer

# [snapshots]                 # when predictions are made; the defaults follow from the data
# first = 2024-04-01          # default: the first that lies one horizon after the first order
# test  = 2025-09-01          # default: the last whose label window is complete; kept untouched until the end
# every = "month"             # or a number of days
# complete_until = 2025-11-30 # last day with all its orders; default: the newest order's, strays left out

# [segments]
# high_value_per_year = 5000  # spend a year from which a customer is of high value

# [identity]                  # who is a customer; with a table of identities, guards against joining strangers
# fold_case = true            # ids that differ by case are one customer
# not_customers = ["guest", ""] # ids that stand for nobody ("": rows without an id): no customers, though their orders stay
# max_customers = 4           # an identity seen with more customers than this links nobody
# max_component = 12          # a person with more customer ids than this is cut apart again

# [contracts]                 # how strict the checks of the sources are
# freshness_days = 7          # a table whose newest event lags further behind is stale
# volume_factor = 4           # a last week this far above or below the weeks before is an anomaly
# max_unmatched = 0.05        # share of a table's customers without any order
# [contracts.severity]        # block, warn or off by rule; `holdfast validate` lists the rules
# "tickets.*.freshness" = "off"

# [promotion]                 # how large a test must be to decide which model goes into force
# min_rows = 200              # customers at the test snapshot; with fewer, luck may decide
# min_class = 30              # of them churned, and as many not

# Each table: where it lies, and each canonical column as a source column or a DuckDB SQL expression.
#   path = "orders/*.parquet"                      Parquet, CSV or Excel (with a header line), globs allowed, relative to this file
#   path = "orders.xlsx", sheet = "May"            one sheet of a workbook with several
#   path = "s3://bucket/orders/"                   Parquet on S3-compatible storage; AWS_* variables as usual
#   database = "shop.duckdb", table = "orders"     a DuckDB file
#   database = "$SHOP_DB_URL", table = "orders"    PostgreSQL or any SQLAlchemy URL; secrets come from the environment
#   query = "SELECT ... FROM a JOIN b USING (x)"   DuckDB SQL over files = {{a = "a.csv", b = "b.parquet"}}
#   where = "status <> 'test'"                     keep only these source rows
#   group_by = "invoice_no"                        several source rows make one; columns are then aggregates
#   decimal = ","                                  decimal mark of numbers that are texts, where a column leaves it open
#   time_format = "%d/%m/%Y %H:%M"                 how times that are texts are written, where it is not ISO 8601
#   duplicates = "drop"                            rows of a file that another file has too: drop or keep; default: refuse
# A bare DATE counts as the end of that day, when the day's events are known.
"""
"""Head of what `holdfast init` writes."""


def template(file: Path) -> str:
    """A commented mapping file that knows every canonical table and column."""
    return TEMPLATE.replace("{file}", str(file)).replace("{{", "{").replace("}}", "}") + "".join(map(_table_template, SOURCES.values()))


def _table_template(source: Source) -> str:
    mark = "" if source.name in ("orders", "order_lines") else "# "
    lines = [f"\n# {source.name}: {source.meaning}", f"{mark}[tables.{source.name}]", f'{mark}path = "{source.name}.csv"']
    lines.append(f"{mark}[tables.{source.name}.columns]")
    for column in source.columns:
        given = f'{column.name} = "{column.name}"'
        lines.append(f"{mark if column.required else '# '}{given:<45} # {column.meaning}")
    return "\n".join(lines) + "\n"
