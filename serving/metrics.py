"""Prometheus metrics of the service: none names a customer, and no label comes from a request but its route."""

import os
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_TENTHS = tuple(step / 10 for step in range(1, 11))

requests = Counter("holdfast_requests", "Requests by route and status code", ["route", "code"])
seconds = Histogram("holdfast_request_seconds", "Time from the request's head to its answer", ["route"], buckets=_SECONDS)
refused = Counter("holdfast_refused", "Requests refused before any work", ["why"])
probability = Histogram("holdfast_churn_probability", "Churn probabilities given out", buckets=_TENTHS)
decisions = Counter("holdfast_decisions", "Decisions by tier and what bound them", ["tier", "binding"])
cancelled = Counter("holdfast_decisions_cancelled", "Decisions cancelled because they took longer than their limit")
breaches = Counter("holdfast_decisions_refused", "Decisions undone because the store found that they broke what must always hold")
occasions = Counter("holdfast_occasions", "Decisions that an occasion asked for", ["occasion"])
model = Gauge("holdfast_model_version", "Version of the champion in force", multiprocess_mode="mostrecent")
reloads = Gauge("holdfast_model_reloads", "Champions put in force since the start", multiprocess_mode="max")
reload_failures = Gauge("holdfast_model_reload_failures", "Champions refused, or that could not be loaded", multiprocess_mode="max")
feature_age = Gauge("holdfast_feature_age_seconds", "Age of the feature table's snapshot", multiprocess_mode="max")
used = Gauge("holdfast_budget_used", "What the day has used of each resource", ["resource"], multiprocess_mode="mostrecent")
limit = Gauge("holdfast_budget_limit", "What the day has of each resource", ["resource"], multiprocess_mode="mostrecent")
waiting = Gauge("holdfast_waiting", "Requests that wait for their turn", multiprocess_mode="livesum")


def page() -> bytes:
    """All metrics, of all workers, in Prometheus' text format."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest()
    registry: Any = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
