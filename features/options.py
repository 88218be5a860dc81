"""Options that several commands share: one help text, one default."""

from pathlib import Path
from typing import Annotated

import typer

from features import mapping
from features.mapping import Dataset

SAMPLE = "sample"

DatasetOption = Annotated[
    str,
    typer.Option("--dataset", help="Mapping file (TOML) of the data set; 'sample' is the embedded Online Retail II. See `holdfast init`."),
]


def dataset_of(option: str) -> Dataset:
    """The data set that ``--dataset`` names."""
    return mapping.read(None if option == SAMPLE else Path(option))
