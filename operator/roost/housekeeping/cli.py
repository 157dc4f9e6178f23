"""`roost orphans`, `cleanup`, `release` and `gateway-token`: the words and tables around what they do.

Exit codes. orphans: 0 nothing found, 1 found, 2 could not look. cleanup: 0 done, 1 not all of it, 2 could not look or
not confirmed. release: 0 done, 1 not all of it, 2 refused or not confirmed. gateway-token: 0 told, 2 there is none.
"""

import argparse
import asyncio
import json
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roost.housekeeping.cleanup import Outcome
    from roost.housekeeping.findings import Finding, Key
    from roost.housekeeping.scan import Report
    from roost.kube.cluster import Cluster
    from roost.settings import Settings

COMMANDS = frozenset({"orphans", "cleanup", "release", "gateway-token"})
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_PLURAL = {"machine": "machines", "volume": "volumes", "app": "apps"}


def add_arguments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> list[argparse.ArgumentParser]:
    """Adds the four commands; answers their parsers, for what all commands have in common."""
    about = "what is at Fly without an Agent, and Agents whose things are gone; exit code 1 when there is any"
    orphans = commands.add_parser("orphans", help=about, description=about)
    about = "delete what is at Fly without an Agent; without --apply it only says what it would delete"
    cleanup = commands.add_parser("cleanup", help=about, description=about)
    for command in (orphans, cleanup):
        command.add_argument("--json", action="store_true", help="for scripts")
        command.add_argument("--org", action="append", default=[], help="only this Fly org; may be given again")
        command.add_argument("--credential", help="only with this Fly credential of the settings")
        command.add_argument(
            "--namespace",
            action="append",
            default=[],
            help="a namespace that Agents were in and that is gone; may be given again",
        )
        command.add_argument(
            "--grace",
            type=grace,
            default=timedelta(days=7),
            help="what has changed within this time is left alone: 7d (default), 12h, 0",
        )
    how = cleanup.add_mutually_exclusive_group()
    how.add_argument("--apply", action="store_true", help="delete, after you have confirmed it by typing")
    how.add_argument("--dry-run", action="store_true", help="change nothing; so it is without --apply")
    cleanup.add_argument("--yes-i-mean", metavar="ORG", help="confirm for a script: the one org that is cleaned")
    about = "take our finalizers off, so that Roost can be uninstalled while machines stay at Fly"
    release = commands.add_parser("release", help=about, description=about)
    where = release.add_mutually_exclusive_group(required=True)
    where.add_argument("--namespace", help="only in this namespace")
    where.add_argument("--all", action="store_true", help="in all namespaces")
    release.add_argument("--yes", action="store_true", help="do not ask")
    release.add_argument(
        "--operator-is-stopped", action="store_true", help="you know it, where no Deployment can tell (roost local)"
    )
    about = "print the token that opens an agent's own ports, to approve who may talk to it; it is a secret"
    token = commands.add_parser("gateway-token", help=about, description=about)
    token.add_argument("agent", help="the Agent's name")
    token.add_argument("--namespace", "-n", default="default", help="the Agent's namespace")
    return [orphans, cleanup, release, token]


def run(arguments: argparse.Namespace, settings: "Settings", cluster: "Cluster") -> int:
    """Does what was parsed; answers the exit code.

    Raises:
        KubeError: the cluster can't be asked.
    """
    from roost.telemetry.logs import set_up

    set_up("error")  # to standard error: standard output is the answer alone
    works = {"orphans": _orphans, "cleanup": _cleanup, "release": _release, "gateway-token": _gateway_token}
    work = works[arguments.command]
    return asyncio.run(work(arguments, settings, cluster))


async def _orphans(arguments: argparse.Namespace, settings: "Settings", cluster: "Cluster") -> int:
    async with AsyncExitStack() as stack:
        report = (await _looked(stack, arguments, settings, cluster)).report
    if arguments.json:
        print(json.dumps(_json(report), indent=2))
    else:
        _print_report(report)
    if report.problems:
        return 2
    return 1 if report.missing or any(f.verdict in ("orphan", "waits", "unknown") for f in report.left) else 0


async def _cleanup(arguments: argparse.Namespace, settings: "Settings", cluster: "Cluster") -> int:
    from roost.housekeeping.cleanup import Cleanup, Outcome
    from roost.housekeeping.findings import Verdict

    def say(outcome: Outcome) -> None:
        if not arguments.json:
            f, why = outcome.finding, f": {outcome.message}" if outcome.message else ""
            print(f"  {outcome.outcome:<8}{f.kind} {f.id}{why}", flush=True)

    async with AsyncExitStack() as stack:
        looked = await _looked(stack, arguments, settings, cluster)
        report, outcomes = looked.report, []
        doomed = [f for f in report.left if f.verdict is Verdict.ORPHAN]
        marked = [f for f in report.left if f.to_mark]
        if not arguments.json:
            _print_report(report)
        if report.problems:
            refused = "Nothing was deleted: what could not be read might say that a thing is still needed."
        elif not arguments.apply or not doomed + marked:
            refused = ""
        else:
            refused = refusal(arguments, doomed, marked)
        if arguments.apply and not refused:
            outcomes = await Cleanup(looked.flies, looked.exists, say, looked.now).run(report.left)
    bad = [o for o in outcomes if o.outcome in ("failed", "left")]
    if arguments.json:
        answer = _json(report) | {
            "applied": arguments.apply and not refused,
            "refused": refused,
            "outcomes": [_finding_json(o.finding) | {"outcome": o.outcome, "message": o.message} for o in outcomes],
            "counts": Counter(o.outcome for o in outcomes),
        }
        print(json.dumps(answer, indent=2))
    elif refused:
        print(refused)
    elif arguments.apply:
        _print_outcomes(outcomes)
    else:
        _print_intent(doomed, marked)
    if refused:
        return 2
    return 1 if bad else 0


async def _release(arguments: argparse.Namespace, settings: "Settings", cluster: "Cluster") -> int:
    from roost.housekeeping import release
    from roost.kube.client import Kube
    from roost.telemetry.metrics import Metrics

    async with Kube(cluster, Metrics()) as kube:
        try:
            await release.refuse_while_running(kube, settings, is_stopped=arguments.operator_is_stopped)
        except release.OperatorRuns as error:
            print(error)
            return 2
        held = await release.held(kube, arguments.namespace)
        if not held:
            print("Nothing has a finalizer of Roost.")
            return 0
        print("These are released; what they have at Fly stays there, runs on and is paid for:\n")
        rows = [
            (f"{h.kind} {h.namespace}/{h.name}", h.app, h.machine, h.volume, "goes at once" if h.deleting else "")
            for h in held
        ]
        _table(("RESOURCE", "APP", "MACHINE", "VOLUME", ""), rows)
        print(
            f"\nTo adopt them again: install Roost with the same Secret {settings.namespace}/roost-roots and Fly token,"
            "\nand apply the same manifests. Save that Secret and the manifests now: deleting the namespace"
            f" {settings.namespace}\nor the CRDs takes them along.\n"
        )
        if not arguments.yes and not _typed([str(len(held))], f"Type {len(held)} to release them: "):
            print("Nothing was changed.")
            return 2
        failed = await release.release(kube, arguments.namespace)
    for sentence in failed:
        print(sentence)
    print(f"{len(held) - len(failed)} of {len(held)} released.")
    return 1 if failed else 0


async def _gateway_token(arguments: argparse.Namespace, settings: "Settings", cluster: "Cluster") -> int:
    from roost.housekeeping.gateway_token import NoAgent, gateway_token_of
    from roost.kube.client import Kube
    from roost.telemetry.metrics import Metrics

    async with Kube(cluster, Metrics()) as kube:
        try:
            print(await gateway_token_of(kube, settings.namespace, arguments.namespace, arguments.agent))
        except NoAgent as error:
            print(error, file=sys.stderr)
            return 2
    return 0


# --- Looking ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Looked:
    report: "Report"
    flies: dict[str, Any]
    exists: "Callable[[Key], Awaitable[bool]]"
    now: datetime


async def _looked(
    stack: AsyncExitStack, arguments: argparse.Namespace, settings: "Settings", cluster: "Cluster"
) -> _Looked:
    from roost.agents.orgs import FlyToken
    from roost.fly.client import Fly
    from roost.housekeeping.scan import Wanted, scan
    from roost.kube.client import Gone, Kube, collection
    from roost.telemetry.metrics import Metrics

    metrics = Metrics()
    kube = await stack.enter_async_context(Kube(cluster, metrics))
    flies = {
        name: await stack.enter_async_context(
            Fly(
                FlyToken(kube, settings.namespace, credential, lambda: None),
                metrics.fly_called,
                base_url=settings.fly.base_url,
            )
        )
        for name, credential in settings.fly.credentials.items()
    }

    async def exists(key: "Key") -> bool:
        try:
            await kube.get(f"{collection('Agent', key[0])}/{key[1]}")
        except Gone:
            return False
        return True

    now = datetime.now(UTC)
    wanted = Wanted(tuple(arguments.org), arguments.credential, tuple(arguments.namespace), arguments.grace)
    return _Looked(await scan(kube, flies, settings, wanted, now), flies, exists, now)


def grace(text: str) -> timedelta:
    """Reads 7d, 12h, 30m, 90s or 0; raises ArgumentTypeError."""
    match = re.fullmatch(r"(\d{1,6})([smhd])|0", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no length of time; write for example 7d, 12h, 30m or 0")
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]]) if match[1] else timedelta()


# --- Confirming -------------------------------------------------------------------------------------------------


def refusal(arguments: argparse.Namespace, doomed: "list[Finding]", marked: "list[Finding]") -> str:
    """Why it is not done; empty when a person, or a script's author, has confirmed it."""
    orgs = sorted({f.org for f in doomed + marked})
    if arguments.yes_i_mean is not None:
        if orgs == [arguments.yes_i_mean]:
            return ""
        return f"Nothing was deleted: --yes-i-mean {arguments.yes_i_mean}, but it is about org {' and '.join(orgs)}."
    if arguments.json:
        return "Nothing was deleted: with --json, confirm by --yes-i-mean ORG."
    if not doomed:
        return ""  # a mark deletes nothing
    allowed = [str(len(doomed)), *(orgs if len(orgs) == 1 else [])]
    what = f"This deletes {_counted(doomed)} in org {' and '.join(orgs)}, with all data in it, for ever."
    if _typed(allowed, f"{what}\nType {' or '.join(allowed)} to go on: "):
        return ""
    return "Nothing was deleted."


def _typed(allowed: Sequence[str], prompt: str) -> bool:
    try:
        return input(prompt).strip() in allowed
    except EOFError:
        print()
        return False


# --- Telling ----------------------------------------------------------------------------------------------------


def _print_report(report: "Report") -> None:
    from roost.housekeeping.findings import span

    now = datetime.now(UTC)
    if report.left:
        print("At Fly, without an Agent in this cluster:\n")
        rows = [
            (
                f.app,
                f.kind,
                f.id if f.kind != "app" else "-",
                "/".join(f.agent),
                f.detail or "-",
                span((now - f.since).total_seconds()) if f.since else "-",
                f"{f.verdict}: {f.why}" if f.why else str(f.verdict),
            )
            for f in report.left
        ]
        _table(("APP", "KIND", "ID", "AGENT", "STATE", "UNCHANGED", "VERDICT"), rows)
        print()
    if report.missing:
        print("Agents of this cluster that miss something at Fly:\n")
        rows_missing = [("/".join(f.agent), f.kind, f.id, f.app, str(f.verdict)) for f in report.missing]
        _table(("AGENT", "KIND", "ID", "APP", "VERDICT"), rows_missing)
        print()
    if report.problems:
        print("Could not look at everything:\n")
        for problem in report.problems:
            print(f"  {problem}")
        print()
    if report.here is not None:
        looked = ", ".join(f"{org} (credential {credential})" for credential, org in report.scopes)
        print(f"Looked at org {looked}: {_summary(report)}.")


def _summary(report: "Report") -> str:
    from roost.housekeeping.findings import Verdict

    counts = Counter(f.verdict for f in (*report.left, *report.missing))
    words = {Verdict.ORPHAN: "to clean up", Verdict.WAITS: "to clean up later"}
    told = [f"{counts[verdict]} {words.get(verdict, verdict)}" for verdict in Verdict if counts[verdict]]
    return ", ".join(told) if told else "nothing found" + (" where it could be read" if report.problems else "")


def _print_intent(doomed: "list[Finding]", marked: "list[Finding]") -> None:
    if not doomed and not marked:
        print("There is nothing to delete.")
        return
    if doomed:
        print(f"Dry run: --apply would delete {_counted(doomed)}.")
    if marked:
        print(f"Dry run: --apply would mark {_counted(marked)} that runs without an Agent; a later run deletes it.")


def _print_outcomes(outcomes: "Sequence[Outcome]") -> None:
    if not outcomes:
        print("There is nothing to delete.")
        return
    counts = Counter(o.outcome for o in outcomes)
    print("Done: " + ", ".join(f"{number} {word}" for word, number in counts.items()) + ".")


def _counted(findings: "Iterable[Finding]") -> str:
    counts = Counter(f.kind for f in findings)
    told = [f"{counts[kind]} {kind if counts[kind] == 1 else many}" for kind, many in _PLURAL.items() if counts[kind]]
    return " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the last one is free. A cell that repeats the one above is left blank."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    before: Sequence[str] = ()
    for row in (head, *rows):
        first = " " * len(row[0]) if before and row[0] == before[0] else row[0]
        cells = [first, *row[1:]]
        print(("  " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))).rstrip())
        before = row


def _json(report: "Report") -> dict[str, Any]:
    return {
        "scopes": [{"credential": credential, "org": org} for credential, org in report.scopes],
        "atFly": [_finding_json(f) for f in report.left],
        "missing": [_finding_json(f) for f in report.missing],
        "problems": list(report.problems),
    }


def _finding_json(f: "Finding") -> dict[str, Any]:
    return {
        "kind": f.kind,
        "id": f.id,
        "app": f.app,
        "org": f.org,
        "credential": f.credential,
        "namespace": f.agent[0],
        "agent": f.agent[1],
        "verdict": str(f.verdict),
        "why": f.why,
        "state": f.detail,
        "since": f.since.isoformat() if f.since else None,
    }
