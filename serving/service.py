"""The BentoML service: one process a worker, no inner services, the guard around everything (`guard.py`).

Served from a Bento the champion lies beside the code; `holdfast serve --from-registry champion` names its folder in
``HOLDFAST_PACKAGE`` instead; ``HOLDFAST_WORKERS`` says how many processes. BentoML gives processes, sockets and packaging; requests
go past its middleware, which would see them before keys and sizes are checked.
"""

import ipaddress
import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any

import bentoml

from features.errors import InputError
from features.settings import Settings
from serving import app
from serving.guard import Guard
from serving.keys import FILE, Keys
from serving.online import OnlineStore
from serving.sqlite_store import SqliteStore

VERSION = "0.2.0"


class Guarded(bentoml.Service[Any]):  # type: ignore[misc]
    """A BentoML service with the guard as its outermost layer."""

    def to_asgi(self, is_main: bool = True) -> Any:
        """The ASGI application of one worker."""
        logging.getLogger("bentoml.access").setLevel(logging.WARNING)
        settings = Settings()
        return Guard(INNER, super().to_asgi(is_main), _keys(settings), INNER.state.full)


def _keys(settings: Settings) -> Keys | None:
    """The keys that callers need; None where the service was told to ask for none, which only a service on this machine may be."""
    if settings.auth == "on":
        return Keys(settings.keys or settings.home / FILE)
    host = _host()
    if not ipaddress.ip_address(host).is_loopback:
        raise InputError(
            f"HOLDFAST_AUTH=off on {host}", "a service that others can reach must ask for keys", "bind 127.0.0.1, or leave it on"
        )
    return None


def _host() -> str:
    """The address that this worker's socket is bound to; what BentoML tells its workers says localhost for 0.0.0.0."""
    if "--fd" not in sys.argv:  # no worker: nobody is served
        return "127.0.0.1"
    with socket.socket(fileno=os.dup(int(sys.argv[sys.argv.index("--fd") + 1]))) as bound:
        return str(bound.getsockname()[0])


def _setup(settings: Settings) -> app.Setup:
    package = settings.package or Path(__file__).parents[1] / "package"
    name, _, alias = (settings.follow or "").partition("@")
    return app.Setup(settings.home, package, settings.features, (name, alias or "champion") if name else None, VERSION)


def _store() -> OnlineStore:
    settings = Settings()
    return SqliteStore(settings.online or settings.home / "online.db")


NAME = "holdfast"
INNER = app.create(_setup(Settings()), _store)
Holdfast = Guarded(
    name=NAME,
    inner=type("Holdfast", (), {"__doc__": "Churn probability and recommended intervention tier."}),
    config={
        "workers": Settings().workers,
        "traffic": {"timeout": 30},
        "logging": {"access": {"enabled": False}},
        "metrics": {"enabled": False},
    },
)
Holdfast.mount_asgi_app(INNER, path="/")
