"""The facts of a run: in the terminal, as HTML with plots, and as ``reports/run.json``."""

import base64
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from features.files import read_json, write_json, write_text
from features.mapping import Dataset
from features.memory import peak
from features.table import read_manifest
from features.terminal import console
from validation.metrics import METRICS
from validation.stages import Places

ORDER = ("recency", "logistic_rfm", "bgnbd", "logistic", "lightgbm", "lstm", "blend")


def report(dataset: Dataset, places: Places, started: float) -> dict[str, Any]:
    """Gather what the stages left in HOLDFAST_HOME, print it, and write both reports; returns the facts."""
    facts = gather(dataset, places, started)
    write_json(places.reports / "run.json", facts)
    write_text(places.reports / "report.html", html(facts, places))
    _print(facts, places)
    return facts


def gather(dataset: Dataset, places: Places, started: float) -> dict[str, Any]:
    """All facts of the last run as one JSON value."""
    training, promotion = read_json(places.folder / "training.json"), read_json(places.folder / "promotion.json")
    contracts = {name: read_json(places.contract(name)) for name in ("sources", "features")}
    manifest = read_manifest(places.features)
    answers = places.reports / "answers.json"
    champion = {"version": promotion["challenger"], "model": promotion["model"]} if promotion["promoted"] else None
    test = training["test"]
    return {
        "dataset": dataset.name,
        "currency": dataset.currency,
        "horizon_days": dataset.churn.horizon_days,
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_mb": peak.megabytes(),
        "rows": contracts["sources"]["rows"],
        "reading": contracts["sources"].get("reading", {}),
        "warnings": [_warning(finding) for finding in contracts["sources"]["findings"] if _warns(finding)],
        "features": len(manifest.names),
        "families_left_out": manifest.left_out,
        "snapshots": training["split"],
        "latest": str(manifest.latest),
        "contracts": {name: {"rules": c["rules"], "passed": c["passed"], "data_docs": c["data_docs"]} for name, c in contracts.items()},
        "test": {**test, "models": {name: test["models"][name] for name in ORDER if name in test["models"]}},
        **{name: training[name] for name in ("calibration_log_loss", "details", "level", "timing", "estimated_latest")},
        "chosen": training["challenger"],
        "challenger": {"version": promotion["challenger"], "model": promotion["model"]},
        "champion": champion or promotion["champion_before"],
        "promotion": promotion,
        "answers": read_json(answers) if answers.exists() else None,
    }


def _warns(finding: dict[str, Any]) -> bool:
    return not finding["passed"] and finding["severity"] == "warn"


def _warning(finding: dict[str, Any]) -> dict[str, Any]:
    return {"rule": finding["id"], "words": finding["rule"], **{name: finding[name] for name in ("broken", "checked", "detail")}}


def html(facts: dict[str, Any], places: Places) -> str:
    """The report as one self-contained page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("training", "templates"),
        undefined=StrictUndefined,
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plots = [_embedded(path) for path in sorted((places.reports / "plots").glob("*.png"))]
    return environment.get_template("report.html.j2").render(facts=facts, metrics=list(METRICS), plots=plots)


def _embedded(path: Path) -> dict[str, str]:
    return {"name": path.stem.replace("_", " "), "data": base64.b64encode(path.read_bytes()).decode()}


def _print(facts: dict[str, Any], places: Places) -> None:
    def say(value: Any = "") -> None:
        console().print(value, soft_wrap=isinstance(value, str))

    say()
    for name, contract in facts["contracts"].items():
        say(f"contract {name}: {contract['rules']} rules, {'all hold' if contract['passed'] else 'BROKEN'} ({contract['data_docs']})")
    for rule, count in facts["reading"].items():
        say(f"  at reading  {count:,}  {rule}")
    for one in facts["warnings"]:
        say(f"  warns  {one['rule']}: {one['words']}: {one['broken']:,} of {one['checked']:,}")
    rows = ", ".join(f"{count:,} {name}" for name, count in facts["rows"].items())
    say(f"data {facts['dataset']}: {rows}; {facts['features']} features; {len(facts['snapshots']['final']) + 1} labelled snapshots")
    say(_models(facts))
    raw = ", ".join(f"{name} {value:.4f}" for name, value in facts["test"]["uncalibrated_log_loss"].items())
    say(f"log loss of the same models without calibration: {raw}")
    _say_chosen(facts)
    _say_promotion(facts["promotion"])
    if facts["answers"]:
        for who, answer in facts["answers"]["customers"].items():
            _say_answer(who, answer, facts["currency"])
    say(f"\n{facts['seconds']:.0f} s, peak memory {facts['peak_memory_mb']:,} MB. Where to look next:")
    say(f"  report      {places.reports / 'report.html'}")
    say(f"  Data Docs   {facts['contracts']['sources']['data_docs']}")
    say("  experiments make ui      (MLflow on http://127.0.0.1:5000)")
    say("  service     make serve   (http://127.0.0.1:3000/openapi.json)")


def _models(facts: dict[str, Any]) -> Table:
    test = facts["test"]
    title = (
        f"test snapshot {test['snapshot']}: {test['rows']:,} customers, {test['churn_rate']:.1%} churned; value [95 % interval], same rows"
    )
    table = Table("model", *METRICS, title=title, title_justify="left")
    for name, metrics in test["models"].items():
        mark = "*" if facts["champion"] and facts["champion"]["model"] == name else ""
        table.add_row(name + mark, *(_cell(*metrics[metric]) for metric in METRICS))
    return table


def _cell(value: float, low: float, high: float) -> str:
    return f"{value:.3f}\n[dim]{low:.3f}-{high:.3f}[/dim]"


def _say_chosen(facts: dict[str, Any]) -> None:
    """Level, high band, thresholds and timing of the challenger."""
    name = facts["chosen"]
    found, high = facts["details"][name], facts["details"][name]["high_band"]
    for moment, level in facts["level"][name].items():
        season = f"{level['season_rate']:.1%} by the seasons" if level["season_rate"] else "no earlier cycle"
        console().print(
            f"level at {moment[:10]}: {level['churn_rate']:.1%} churn expected [{level['low']:.1%}, {level['high']:.1%}] "
            f"({level['model_rate']:.1%} by the {name} alone, {season})",
            soft_wrap=True,
        )
    console().print(
        f"{name}: high band (p >= {high['threshold']:g}): {high['customers']:,} customers, precision {high['precision']:.1%}, recall "
        f"{high['recall']:.1%}; accuracy {found['accuracy']:.1%} (target {found['accuracy_target']:.0%}, "
        f"{found['estimated']['accuracy']:.1%} expected)",
        soft_wrap=True,
    )
    pinball = ", ".join(f"{float(q):.0%} {ours:.2f} ({plain:.2f})" for q, (ours, plain) in facts["timing"]["pinball_days"].items())
    console().print(f"days to the next order, pinball loss (everybody alike): {pinball}; {facts['timing']['covered']:.0%} in the interval")


def _say_promotion(promotion: dict[str, Any]) -> None:
    outcome = "champion (*)" if promotion["promoted"] else "refused"
    console().print(f"version {promotion['challenger']} ({promotion['model']}) {outcome}, judged against {promotion['against']}:")
    for verdict in promotion["verdicts"]:
        console().print(f"  {verdict['outcome']:4}  {verdict['reason']}", markup=False, soft_wrap=True)


def _say_answer(who: str, answer: dict[str, Any], currency: str) -> None:
    gains = ", ".join(f"{tier} {gain:,.2f}" for tier, gain in answer["expected_gain"].items())
    console().print(
        f"\n{who}: customer {answer['customer_id']} ({answer['lifecycle_stage']}, {answer['value_segment']} value): "
        f"churn probability {answer['churn_probability']:.1%} ({answer['risk_band']})"
    )
    action = f": {answer['strategy']} by {answer['channel']}" if answer["strategy"] else ""
    console().print(f"  tier {answer['tier']}{action}; expected gain in {currency}: {gains} ({answer['effects_source']} effects)")
    for reason in answer["reasons"]:
        console().print(f"  {reason['effect']} it: {reason['text']}", markup=False, soft_wrap=True)
