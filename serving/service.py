"""The BentoML service: one process, no inner services, the Starlette application mounted at its root.

Served from a Bento the champion lies beside the code; `holdfast serve --from-registry champion` names its
folder in ``HOLDFAST_PACKAGE`` instead.
"""

import logging
import os
from pathlib import Path

import bentoml

from features.settings import Settings
from serving import app, policy
from serving.score import Engine

VERSION = "0.1.0"
PACKAGE = Path(os.environ.get("HOLDFAST_PACKAGE") or Path(__file__).parents[1] / "package")
"""Folder with ``model/``, ``identity.json`` and ``policy.toml`` (see `package.py`)."""


def _load() -> Engine:
    logging.getLogger("bentoml.access").setLevel(logging.WARNING)
    table = os.environ.get("HOLDFAST_FEATURES")
    return Engine.load(PACKAGE / "model", policy.read(PACKAGE / "policy.toml"), Path(table) if table else None)


@bentoml.service(name="holdfast", workers=1, traffic={"timeout": 30})
@bentoml.asgi_app(app.create(_load, Settings().home / "decisions", VERSION), path="/")
class Holdfast:
    """Churn probability and recommended intervention tier."""
