"""The OpenAPI 3.1 document, made from the same pydantic models that check requests."""

from typing import Any

from pydantic.json_schema import models_json_schema

from serving import schemas
from serving.idempotency import HEADER, REPLAYED
from serving.rows import NOT_BLANK

DESCRIPTION = """Churn probability within the horizon, the recommended tier, and decisions under consent, caps, capacities and budget.

1. `POST /v1/score` tells the probability, and the tier of the highest expected gain before any constraint. It changes nothing.
2. `POST /v1/decisions` decides about a contact under all constraints, reserves its cost, and logs it.
3. `POST /v1/events` and `POST /v1/outcomes` tell what happened since; the next score and decision know it.

Expected gains rest on the effects named in `effects_source`: `assumed` until measured. Stored data carry pseudonyms only.
A customer is named by the shop's own id or by the pseudonym that answers give. A body may be compressed (`Content-Encoding: gzip`).
Send a key with `Authorization: Bearer KEY` (`holdfast keys add`). `/try` is a page to try it in a browser."""
_SCORED = {
    "status": "scored",
    "customer_id": "12347",
    "pseudonym": "a4a591ffe2586911722b62fd222f4568",
    "snapshot": "2011-12-10T00:00:00+00:00",
    "churn_probability": 0.61,
    "risk_band": "medium",
    "lifecycle_stage": "active",
    "plan_stage": "growing",
    "value_segment": "standard",
    "next_order_days": {"low": 16.5, "median": None, "high": None},
    "reasons": None,
    "churn_reason": "need_changed",
    "effects_source": "assumed",
    "tier": "offer",
    "strategy": "time-limited coupon",
    "channel": "e-mail",
    "expected_gain": {"none": 0.0, "nudge": 26.9, "offer": 36.5, "concierge": 33.6},
}
_VERSIONS = {"model_version": "3", "policy_version": "2026-11-25", "currency": "GBP"}
_DECIDED = {
    **_SCORED,
    "decision_id": "6f1c0d6a4be04a0e8e5a3c1d2b7f9a10",
    "send_after": None,
    "runner_up": "nudge",
    "binding": None,
    "gain_given_up": 0.0,
    "blocked": {},
    "consent": "granted",
    "propensity": 1.0,
    "occasion": None,
}
EXAMPLES: dict[str, Any] = {
    "ScoreAnswer": {**_VERSIONS, "results": [_SCORED]},
    "DecisionAnswer": {**_VERSIONS, "results": [_DECIDED]},
    "EventsAnswer": {"accepted": 1, "known": 0, "erased": 0, "unknown": 0, "nobody": 0},
    "OutcomesAnswer": {"accepted": 1, "known": 0, "unknown": 0},
}
REQUESTS = (
    schemas.ScoreRequest,
    schemas.DecisionRequest,
    schemas.EventsRequest,
    schemas.OutcomesRequest,
    schemas.ConsentRequest,
    schemas.ProfileRequest,
    schemas.CustomerConsents,
    schemas.ErasureRequest,
)
ANSWERS = (
    schemas.ScoreAnswer,
    schemas.DecisionAnswer,
    schemas.DecisionFeed,
    schemas.LoggedDecision,
    schemas.EventsAnswer,
    schemas.OutcomesAnswer,
    schemas.Profile,
    schemas.Erased,
    schemas.Consented,
    schemas.ModelAnswer,
    schemas.Problem,
)
_KEYED = {"401": "No key, or none that is known", "403": "The key lacks the scope", "429": "The key's rate is used up; see Retry-After"}
_BODY = {
    "400": "The body is not JSON",
    "408": "The body came too slowly",
    "413": "The body is larger than allowed",
    "415": "The content type is not application/json, or the content encoding not gzip",
    "422": "A field breaks the schema; `errors` names the fields",
}
_BUSY = {"503": "Too many requests wait; see Retry-After"}
_ONCE = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "any text of your own, a new one for each request: sent again with it, the request gets the first answer and is decided"
    " once; kept for 48 hours",
    "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[\\x21-\\x7e]+$"},
}
_REPLAYED = {REPLAYED: {"description": "the answer that was given before", "schema": {"type": "string", "const": "true"}}}
_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "description": "percent-encoded, a slash too; or name the customer in a body (`/v1/customers/profile`, `consents`, `erasure`)",
    "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": NOT_BLANK},
}


def document(version: str) -> dict[str, Any]:
    """The whole document."""
    modes: list[Any] = [(model, "validation") for model in REQUESTS] + [(model, "serialization") for model in ANSWERS]
    _, definitions = models_json_schema(modes, ref_template="#/components/schemas/{model}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Holdfast",
            "version": version,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "./"}],
        "security": [{"bearer": []}, {"header": []}],
        "paths": _paths(),
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _paths() -> dict[str, Any]:
    after = {"name": "after", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": 2**62, "default": 0}}
    limit = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 0, "maximum": 1000, "default": 100}}
    decision = {**_ID, "description": "32 hexadecimal digits", "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"}}
    busy, gone = {**_KEYED, **_BODY, **_BUSY}, {"404": "Not known here"}
    score = _posted("score", "Score customers by id, raw history or feature row", "ScoreRequest", "ScoreAnswer", busy)
    score["responses"]["409"] = _problem("The model version asked for is not loaded")
    decide = _posted("decide", "Decide about contacts under all constraints, and log it", "DecisionRequest", "DecisionAnswer", busy)
    decide["responses"]["409"] = _problem("The model version is not loaded, or its features allow no decision")
    decide["parameters"] = [_ONCE]
    decide["responses"]["200"]["headers"] = _REPLAYED
    decide["responses"]["422"] = _problem(f"{_BODY['422']}; or the {HEADER} is none, or came with another request before")
    decide["responses"]["503"] = _problem("Too many requests wait, or the decision took longer than its limit; see Retry-After")
    consents = {
        **_posted("consents", "Give or withdraw consents", "ConsentRequest", "Consented", {**busy, **gone}),
        "parameters": [_ID],
    }
    profile = _read("profile", "What is known of a customer", "Profile", {**_KEYED, **gone, "422": _BODY["422"], **_BUSY}, [_ID])
    erase = _read("erase", "Erase a customer everywhere", "Erased", {**_KEYED, **gone, "422": _BODY["422"], **_BUSY}, [_ID])
    feed = _read("feed", "Decisions in the order of the log", "DecisionFeed", {**_KEYED, "422": _BODY["422"]}, [after, limit])
    return {
        "/v1/score": {"post": score},
        "/v1/decisions": {"post": decide, "get": feed},
        "/v1/decisions/{id}": {"get": _read("decision", "A decision and its outcomes", "LoggedDecision", {**_KEYED, **gone}, [decision])},
        "/v1/events": {"post": _posted("events", "Tell what happened to customers", "EventsRequest", "EventsAnswer", busy)},
        "/v1/outcomes": {"post": _posted("outcomes", "Tell what happened to decisions", "OutcomesRequest", "OutcomesAnswer", busy)},
        "/v1/customers/{id}": {"get": profile, "delete": erase},
        "/v1/customers/{id}/consents": {"put": consents},
        "/v1/customers/profile": {
            "post": _posted("profileOf", "What is known of a customer", "ProfileRequest", "Profile", {**busy, **gone})
        },
        "/v1/customers/consents": {
            "post": _posted("consentsOf", "Give or withdraw consents of a customer", "CustomerConsents", "Consented", {**busy, **gone})
        },
        "/v1/customers/erasure": {"post": _posted("eraseOne", "Erase a customer everywhere", "ErasureRequest", "Erased", {**busy, **gone})},
        "/v1/model": {"get": _read("model", "What is served", "ModelAnswer", _KEYED)},
        "/v1/policy": {"get": _plain("policy", "The policy in force", "application/json", {"type": "object"}, _KEYED)},
        "/metrics": {"get": _plain("metrics", "Prometheus metrics", "text/plain", {"type": "string"}, _KEYED)},
        "/readyz": {"get": _open("ready", "Whether the service takes requests", {"503": "Not ready, see Retry-After, or stuck"})},
        "/livez": {"get": _open("live", "Whether the process is alive", {"503": "Stuck: start it anew"})},
        "/healthz": {"get": _open("health", "The same as /livez", {"503": "Stuck: start it anew"})},
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _posted(id: str, summary: str, request: str, answer: str, problems: dict[str, str]) -> dict[str, Any]:
    return {
        "summary": summary,
        "operationId": id,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(request)}}},
        "responses": {"200": _content("Done", answer), **{code: _problem(text) for code, text in problems.items()}},
    }


def _read(id: str, summary: str, answer: str, problems: dict[str, str], parameters: list[Any] | None = None) -> dict[str, Any]:
    responses = {"200": _content("Found", answer), **{code: _problem(text) for code, text in problems.items()}}
    return {"summary": summary, "operationId": id, "parameters": parameters or [], "responses": responses}


def _plain(id: str, summary: str, media: str, schema: Any, problems: dict[str, str]) -> dict[str, Any]:
    found = {"description": "Found", "content": {media: {"schema": schema}}}
    return {"summary": summary, "operationId": id, "responses": {"200": found, **{code: _problem(text) for code, text in problems.items()}}}


def _open(id: str, summary: str, problems: dict[str, str]) -> dict[str, Any]:
    return {**_plain(id, summary, "text/plain", {"type": "string"}, problems), "security": []}


def _content(description: str, answer: str) -> dict[str, Any]:
    example = {"example": EXAMPLES[answer]} if answer in EXAMPLES else {}
    return {"description": description, "content": {"application/json": {"schema": _ref(answer)} | example}}


def _problem(description: str) -> dict[str, Any]:
    headers = {"headers": {"Retry-After": {"schema": {"type": "string"}}}} if "Retry-After" in description else {}
    return {"description": description, "content": {"application/problem+json": {"schema": _ref("Problem")}}, **headers}
