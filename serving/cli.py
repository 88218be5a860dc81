"""Commands `package`, `serve`, `score`, `decide`, `explain` and `show`; `policy` and `keys` are in `cli_admin.py`."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from features.errors import InputError
from features.files import locked, write_json
from features.mapping import Dataset
from features.options import SAMPLE, DatasetOption, dataset_of
from features.settings import Settings
from features.terminal import console, progress

PolicyOption = Annotated[Path | None, typer.Option("--policy", help="policy file (TOML); default: the shipped serving/policy.toml")]
DEPLOY_HELP = "also write the Bento with a Dockerfile, a Compose file and a Kubernetes manifest into this folder"


def package(
    dataset: DatasetOption = SAMPLE,
    policy: PolicyOption = None,
    deploy: Annotated[Path | None, typer.Option(help=DEPLOY_HELP)] = None,
) -> None:
    """Build a Bento with the champion's files, the feature code and the policy."""
    progress("packaging the champion")
    from serving import deploy as deploying
    from serving import package as packaging

    settings = Settings()
    with locked(settings.home):
        told = packaging.build(settings, dataset_of(dataset).model_name, policy)
    progress(f"packaged {told['tag']}: {told['model']} version {told['model_version']}")
    if deploy is not None:
        for file in deploying.write(deploy, settings, told):
            progress(f"wrote {file}")


def serve(
    dataset: DatasetOption = SAMPLE,
    host: Annotated[str, typer.Option(help="address to bind; only this machine unless told")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 3000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="processes that answer")] = 1,
    from_registry: Annotated[
        str | None, typer.Option(help="serve this alias of the registry (champion, challenger) instead of the Bento")
    ] = None,
    follow: Annotated[bool, typer.Option(help="switch to a new champion of the registry without a restart")] = True,
    auth: Annotated[bool, typer.Option(help="ask for API keys (`holdfast keys add`); --no-auth only on this machine")] = True,
    policy: PolicyOption = None,
) -> None:
    """Serve the packaged champion: scores, decisions, events; a page to try it at /try, the API's document at /openapi.json."""
    from serving import package as packaging
    from serving import server

    settings, mapped = Settings(), dataset_of(dataset)
    folder = None
    if from_registry:
        folder = settings.home / "serving" / from_registry
        identity = packaging.fetch(settings, mapped.model_name, from_registry, folder, policy)
        target = packaging.SERVICE
    elif policy is not None:
        raise InputError("--policy", "a Bento carries its own policy", "give it to `holdfast package`, or add --from-registry champion")
    else:
        identity = packaging.packaged(settings)
        target = identity["path"]
    _serveable(settings, host, auth)
    table = _newest(settings, mapped)
    _online(settings, mapped)
    more = {"auth": "on" if auth else "off", "workers": str(workers), "online": str(_online_file(settings, mapped).resolve())}
    if follow and from_registry in (None, "champion"):
        more["follow"] = f"{mapped.model_name}@champion"
    env = server.environment(settings, table, folder, **more)
    progress(f"serving {identity['model']} version {identity['model_version']} on http://{host}:{port} (try http://{host}:{port}/try)")
    line = server.command(target, host, port)
    os.execvpe(line[0], line, env)


def _serveable(settings: Settings, host: str, auth: bool) -> None:
    """Refuse an open door; say what is missing behind a closed one."""
    from serving.keys import FILE, read

    if not auth and host not in ("127.0.0.1", "localhost", "::1"):
        raise InputError(
            f"--no-auth --host {host}", "a service that others can reach must ask for keys", "leave out --no-auth, or bind 127.0.0.1"
        )
    if auth and not read(settings.keys or settings.home / FILE):
        progress("no API key exists yet: make one with `holdfast keys add NAME` (the running service sees it), or serve with --no-auth")


def score(
    dataset: DatasetOption = SAMPLE,
    out: Annotated[Path | None, typer.Option(help="Parquet file to write; default: scored.parquet in the data set's folder")] = None,
    reasons: Annotated[bool, typer.Option(help="say why; --no-reasons is several times faster")] = True,
    policy: PolicyOption = None,
) -> None:
    """Score every customer of the latest snapshot with the champion, in one batch."""
    from serving import batch
    from serving import package as packaging

    settings, mapped = Settings(), dataset_of(dataset)
    folder = settings.home / "serving" / "batch"
    with locked(settings.home):
        packaging.fetch(settings, mapped.model_name, "champion", folder, policy)
        out = out or settings.of(mapped.name) / "scored.parquet"
        rows = batch.score(folder, _newest(settings, mapped), out, reasons)
    progress(f"scored {rows:,} customers to {out}")


def decide(
    dataset: DatasetOption = SAMPLE,
    out: Annotated[
        Path | None, typer.Option(help="Parquet file to write; default: decisions/<moment>.parquet in the data set's folder")
    ] = None,
    occasion: Annotated[
        str | None, typer.Option(help="only those who have it: first_order_24h, anniversary, silent_90d, cart_left, complaint_open")
    ] = None,
    strategy: Annotated[str, typer.Option(help="no_contact, top_risk, expected_gain, budgeted or randomised")] = "budgeted",
    share: Annotated[float, typer.Option(min=0, max=1, help="of randomised: customers whose tier is drawn")] = 0.1,
    experiment: Annotated[
        str | None, typer.Option(help="of randomised: its name; the same draws the same customers again, another independently")
    ] = None,
    prices_only: Annotated[bool, typer.Option(help="reserve nothing: the service spends the day's budget at the prices found")] = False,
    policy: PolicyOption = None,
) -> None:
    """Decide about everybody of the latest snapshot under the day's budget and capacities; log it and reserve the contacts."""
    from serving import daily
    from serving import package as packaging
    from serving import policy as policies
    from serving.decisions import Decider
    from serving.policy import Occasion
    from serving.score import Engine

    settings, mapped = Settings(), dataset_of(dataset)
    if occasion is not None and occasion not in [one.value for one in Occasion]:
        raise InputError(f"--occasion {occasion}", "is no occasion", f"choose among {', '.join(Occasion)}")
    chosen, folder, table = _strategy(strategy, share, experiment), settings.home / "serving" / "batch", _newest(settings, mapped)
    with locked(settings.home):
        packaging.fetch(settings, mapped.model_name, "champion", folder, policy)
        store = _online(settings, mapped)
        progress("scoring everybody")
        engine = Engine.load(folder / "model", policies.read(folder / "policy.toml"), table)
        store.set_meta(f"policy:{engine.policy.digest}", engine.policy.model_dump(mode="json", by_alias=True))
        today = Occasion(occasion) if occasion else None
        round = daily.Round(engine, Decider(store), table, today, chosen, prices_only, progress)
        name = datetime.fromtimestamp(round.now, UTC).strftime("%Y-%m-%dT%H%M%SZ") + (f"-{occasion}" if occasion else "")
        out = out or settings.of(mapped.name) / "decisions" / f"{name}.parquet"
        day = round.run(out)
    _tell(day, engine.manifest.currency, prices_only)
    progress(f"wrote {day.customers:,} decisions to {out}")


def _strategy(name: str, share: float, experiment: str | None) -> Any:
    from serving.strategies import STRATEGIES, Randomised

    if name not in STRATEGIES:
        raise InputError(f"--strategy {name}", "is no strategy", f"choose among {', '.join(STRATEGIES)}")
    if name != Randomised.name:
        return STRATEGIES[name]()
    if not experiment:
        fix = "give it one: the same name draws the same customers again, another name draws independently"
        raise InputError("--strategy randomised", "needs the name of the experiment (--experiment NAME)", fix)
    return Randomised(share, experiment)


def _tell(day: Any, currency: str, prices_only: bool) -> None:
    """The day in a few lines: contacts, money, prices, and what the constraints cost."""
    from rich.table import Table

    contacts = ", ".join(f"{count:,} {tier}" for tier, count in day.contacts.items())
    progress(f"{'planned' if prices_only else 'reserved'}: {contacts}; cost {day.cost:,.2f} {currency}")
    progress(f"expected gain {day.expected_gain:,.2f} {currency}, at most {day.bound:,.2f} possible (gap {day.gap:.1e})")
    progress(f"the service, at these prices, decides alike for {day.agreement:.2%} of customers; ties follow the plan")
    for name, price in day.prices.items():
        money = name.split()[0] == "budget"
        unit = f"1,000 {currency} more" if money else f"an hour of {name} more"
        amount = price * (1000 if money else 1)
        progress(f"{name}: {day.used[name]:,.2f} of {day.limits[name]:,.2f} used; {unit} would gain {amount:,.2f} {currency}")
    shown = Table("what kept customers from the tier of the highest gain", f"gain given up ({currency})", title_justify="left")
    for name, amount in sorted(day.given_up.items(), key=lambda item: -item[1]):
        shown.add_row(name, f"{amount:,.2f}")
    console().print(shown)


def explain(
    decision: Annotated[str, typer.Argument(help="decision_id, 32 hexadecimal digits")],
    dataset: DatasetOption = SAMPLE,
) -> None:
    """Make a logged decision again from what was logged, and show how it came about; exit code 3 if it comes out otherwise."""
    from features.errors import RefusedError
    from serving import package as packaging
    from serving.replay import replay
    from serving.sqlite_store import SqliteStore
    from training.models.scorer import Scorer

    settings, mapped = Settings(), dataset_of(dataset)

    def scorer(version: str) -> Scorer:
        folder = settings.home / "serving" / "explain"
        packaging.fetch(settings, mapped.model_name, version, folder, None)
        return Scorer.load(folder / "model")

    found = replay(decision, SqliteStore(_online_file(settings, mapped)), settings.of(mapped.name) / "decisions", scorer)
    _tell_replay(found)
    if not found.exact:
        raise RefusedError("made again it comes out otherwise: the log or the code was changed")


def _tell_replay(found: Any) -> None:
    body = found.body
    print(f"decision {body['decision_id']} of {body['at']}: {body['tier']}, {body['strategy'] or 'no contact'}")
    print(f"  model version {body['model_version']}, policy {body['policy_version']} ({body['policy_digest']})")
    print(f"  occasion {body['occasion'] or 'none'}, bound by {body['binding'] or 'nothing'}")
    print(f"  churn probability {body['churn_probability']:.6f}, value {found.situation.value[0]:,.2f}")
    for tier, gain in body["expected_gain"].items():
        priced = found.priced.get(tier)
        told = f"at the day's prices {priced:,.4f}" if priced is not None else f"blocked: {found.blocked.get(tier, 'ran out')}"
        print(f"  {tier:<10} expected gain {gain:>12,.4f}   {told}")
    print("  made again: the same" if found.exact else "  made again: DIFFERENT")


def show(dataset: DatasetOption = SAMPLE) -> None:
    """Start the packaged service, ask it about three real customers, print the answers, shut it down."""
    from serving import package as packaging
    from serving import server, showcase

    settings, mapped = Settings(), dataset_of(dataset)
    table = _newest(settings, mapped)
    told = packaging.packaged(settings)
    progress("starting the packaged service")
    settings.reports.mkdir(parents=True, exist_ok=True)
    _online(settings, mapped)
    env = server.environment(settings, table, auth="off", online=str(_online_file(settings, mapped).resolve()))
    with server.running(told["path"], env, settings.reports / "service.log") as address:
        answers = showcase.ask(address, table)
    write_json(settings.reports / "answers.json", answers)
    progress("service answered and shut down cleanly")
    for who, answer in answers["customers"].items():
        console().print(f"          {who}: {answer['churn_probability']:.0%} churn, tier {answer['tier']}")


def _newest(settings: Settings, mapped: Dataset) -> Path:
    from features.table import newest

    return newest(settings.of(mapped.name))


def _online_file(settings: Settings, mapped: Dataset) -> Path:
    return settings.online or settings.of(mapped.name) / "online.db"


def _online(settings: Settings, mapped: Dataset) -> Any:
    """The online store, brought up to the canonical tables in force."""
    from serving.load import load
    from serving.sqlite_store import SqliteStore

    store, sources = SqliteStore(_online_file(settings, mapped)), settings.of(mapped.name) / "sources.json"
    if sources.exists():
        load(store, sources, mapped.timezone, progress, mapped.identity)
    return store


def simulate_policy(
    dataset: DatasetOption = SAMPLE,
    out: Annotated[
        Path | None, typer.Option(help="folder for policy.json and policy.png; default: simulated in the data set's folder")
    ] = None,
    truth: Annotated[
        Path | None, typer.Option(help="folder of `holdfast simulate` that made the data set: then the true effect is known")
    ] = None,
    budget: Annotated[
        list[float] | None, typer.Option(min=0, help="budgets of a day, repeated; default: a grid up to where none binds")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the experiment that randomised draws, and of the intervals")] = 1,
    policy: PolicyOption = None,
) -> None:
    """Set the strategies against each other over a range of budgets, on customers of the test snapshot: value, cost, return on spend."""
    from serving import package as packaging
    from serving import policy as policies
    from serving import simulation
    from serving.score import Engine

    settings, mapped = Settings(), dataset_of(dataset)
    folder, places = settings.home / "serving" / "batch", settings.of(mapped.name)
    with locked(settings.home):
        packaging.fetch(settings, mapped.model_name, "champion", folder, policy)
        rules = policies.read(folder / "policy.toml")
        engine = Engine.load(folder / "model", rules)
        sources = places / "sources.json"
        found = simulation.simulate_policy(
            engine,
            places / "features.parquet",
            rules,
            out or places / "simulated",
            truth,
            budget,
            seed,
            progress,
            sources if sources.exists() else None,
        )
    console().print(simulation.shown(found))
    for line in simulation.told(found):
        progress(line)
