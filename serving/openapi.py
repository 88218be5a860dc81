"""The OpenAPI 3.1 document, made from the same pydantic models that check requests."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving import schemas

DESCRIPTION = (
    "Churn probability within the horizon and the recommended intervention tier. Expected gains rest on the effects "
    "named in `effects_source`: `assumed` until measured. Customer ids are pseudonymous keys."
)
EXAMPLE_ANSWER = {
    "model_version": "1",
    "policy_version": "2026-11-21",
    "currency": "GBP",
    "results": [
        {
            "status": "scored",
            "customer_id": "12347",
            "snapshot": "2011-12-10T00:00:00+00:00",
            "churn_probability": 0.31,
            "risk_band": "low",
            "lifecycle_stage": "active",
            "plan_stage": "growing",
            "value_segment": "standard",
            "reasons": [
                {
                    "family": "gaps",
                    "feature": "silence_over_gap_mean",
                    "effect": "lowers",
                    "log_odds": -0.62,
                    "text": "has been silent for 0.1 times the usual gap",
                }
            ],
            "churn_reason": "unknown",
            "next_order_days": {"low": 6.5, "median": 31.0, "high": None},
            "tier": "none",
            "strategy": None,
            "channel": None,
            "expected_gain": {"none": 0.0, "nudge": 6.9, "offer": 6.5, "concierge": 3.6},
            "effects_source": "assumed",
            "decision_id": "6f1c0d6a4be04a0e8e5a3c1d2b7f9a10",
        }
    ],
}


def document(version: str) -> dict[str, Any]:
    """The whole document."""
    answers: list[type[BaseModel]] = [schemas.ScoreAnswer, schemas.ModelAnswer, schemas.Problem]
    found, definitions = models_json_schema(
        [(schemas.ScoreRequest, "validation"), *((model, "serialization") for model in answers)],
        ref_template="#/components/schemas/{model}",
    )
    refs = {key[0].__name__: value for key, value in found.items()}
    score = {
        "summary": "Score customers by id or by raw history",
        "operationId": "score",
        "requestBody": {"required": True, "content": {"application/json": {"schema": refs["ScoreRequest"]}}},
        "responses": {
            "200": _content("Scores and decisions, in the order of the request", refs["ScoreAnswer"], EXAMPLE_ANSWER),
            **{code: _problem(text, refs) for code, text in _PROBLEMS.items()},
        },
    }
    model = {
        "summary": "What is served",
        "operationId": "model",
        "responses": {"200": _content("Model, policy and table in force", refs["ModelAnswer"])},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Holdfast",
            "version": version,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": {"/v1/score": {"post": score}, "/v1/model": {"get": model}, "/readyz": {"get": _ready()}},
        "components": {"schemas": definitions["$defs"]},
    }


_PROBLEMS = {
    "400": "The body is not JSON",
    "413": "The body is larger than allowed",
    "415": "The content type is not application/json",
    "422": "A field breaks the schema; `errors` names the fields",
    "503": "All workers are busy; see Retry-After",
}


def _content(description: str, schema: dict[str, Any], example: Any = None) -> dict[str, Any]:
    content = {"schema": schema} | ({"example": example} if example is not None else {})
    return {"description": description, "content": {"application/json": content}}


def _problem(description: str, refs: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/problem+json": {"schema": refs["Problem"]}}}


def _ready() -> dict[str, Any]:
    return {"summary": "Whether the service can answer", "operationId": "ready", "responses": {"200": {"description": "It can"}}}
