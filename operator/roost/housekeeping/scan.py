"""Reads both sides whole, the cluster and Fly, and compares them. Changes nothing.

What could not be read becomes a sentence in `Report.problems`, and what depends on it is UNKNOWN.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from roost.fly.client import Fly
from roost.fly.errors import FlyError, NotFound
from roost.housekeeping.findings import Finding, Here, Living, Sight, Verdict, find, missing
from roost.intake import checks, listing
from roost.kube.client import Gone, Kube, KubeError, core_secret
from roost.kube.records import record
from roost.kube.roots import SECRET_NAME, LostRoots, load_roots
from roost.settings import Settings

Scope = tuple[str, str]
"""A credential's name and an org's slug."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where to look: empty means everywhere that the settings and the Agents name."""

    orgs: tuple[str, ...] = ()
    credential: str | None = None
    namespaces: tuple[str, ...] = ()
    """Where Agents may have been, beside the namespaces that exist."""
    grace: timedelta = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `here` is None when the cluster could not be read: then nothing is known of Fly either."""

    here: Here | None
    scopes: tuple[Scope, ...] = ()
    left: tuple[Finding, ...] = ()
    """At Fly, without an Agent here."""
    missing: tuple[Finding, ...] = ()
    """Of an Agent here, and not at Fly."""
    problems: tuple[str, ...] = field(default=())


async def scan(kube: Kube, flies: Mapping[str, Fly], settings: Settings, wanted: Wanted, now: datetime) -> Report:
    """Looks at both sides; what can't be looked at is said in the report."""
    try:
        here = await _here(kube, settings.namespace)
        agents = [_living(body, settings) async for body in listing.objects(kube, "Agent")]
        namespaces = {*wanted.namespaces, *await _namespaces(kube)}
    except (KubeError, LostRoots) as error:
        return Report(None, problems=(f"the cluster can't be read, so all at Fly is unknown: {error}",))
    scopes = _scopes(agents, settings, wanted)
    sights = [await look(flies, scope) for scope in scopes]
    problems = [problem for sight in sights for problem in sight.problems]

    def compare(secrets: Mapping[str, frozenset[str]]) -> list[Finding]:
        return find(here, agents, namespaces, sights, secrets, now=now, grace=wanted.grace)

    secrets: dict[str, frozenset[str]] = {}
    for app, credential in {f.app: f.credential for f in compare(secrets)}.items():
        try:
            secrets[app] = frozenset(await flies[credential].list_secret_names(app))
        except FlyError as error:
            problems.append(f"the names of the secrets of app {app} can't be read: {error}")
    lost = [f for f in missing(agents, sights) if f.verdict is Verdict.UNKNOWN]
    for finding in missing(agents, sights):
        if finding.verdict is Verdict.MISSING:
            try:
                if not await _exists(flies[finding.credential], finding):
                    lost.append(finding)
            except FlyError as error:
                problems.append(f"{finding.kind} {finding.id} can't be looked at: {error}")
                lost.append(replace(finding, verdict=Verdict.UNKNOWN))
    return Report(here, tuple(scopes), tuple(compare(secrets)), tuple(lost), tuple(problems))


async def _here(kube: Kube, namespace: str) -> Here:
    try:
        await kube.get(core_secret(namespace, SECRET_NAME))  # else `load_roots` would make new ones
    except Gone as error:
        raise LostRoots(
            f"Secret {namespace}/{SECRET_NAME} is missing, and without it nothing at Fly can be recognised; give the "
            "operator's settings with --config if Roost lives in another namespace, or restore it from your backup"
        ) from error
    roots = await load_roots(kube, namespace)
    return Here(roots.owner_id, roots.identity, await checks.cluster_uid(kube))


def _living(body: Mapping[str, Any], settings: Settings) -> Living:
    found = record(body)
    fly, status = found.spec.get("fly") or {}, found.status
    pinned = status.get("app") or {}
    return Living(
        key=(found.key.namespace, found.key.name),
        credential=fly.get("credential") or next(iter(settings.fly.credentials)),
        org=pinned.get("org") or fly.get("org") or settings.fly.org,
        deleting=found.deleting,
        app=pinned.get("name"),
        machine=(status.get("machine") or {}).get("id"),
        volume=(status.get("volume") or {}).get("id"),
        mentions=frozenset(_words([status, fly.get("app")])),
    )


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _words(part)
    elif isinstance(value, list):
        for part in value:
            yield from _words(part)


async def _namespaces(kube: Kube) -> list[str]:
    names: list[str] = []
    token: dict[str, str] = {}
    while True:
        page = await kube.get("/api/v1/namespaces", limit=listing.PAGE, **token)
        names += [item["metadata"]["name"] for item in page["items"]]
        if not (following := page["metadata"].get("continue")):
            return names
        token = {"continue": following}


def _scopes(agents: Iterable[Living], settings: Settings, wanted: Wanted) -> list[Scope]:
    """What the settings and the Agents use, or the orgs asked for; each once."""
    credentials = settings.fly.credentials
    if wanted.orgs:
        chosen = [wanted.credential] if wanted.credential else list(credentials)
        return [(credential, org) for credential in chosen for org in dict.fromkeys(wanted.orgs)]
    default = wanted.credential or next(iter(credentials))
    scopes = dict.fromkeys([(default, settings.fly.org), *((a.credential, a.org) for a in agents)])
    return [scope for scope in scopes if wanted.credential in (None, scope[0])]


async def look(flies: Mapping[str, Fly], scope: Scope) -> Sight:
    """All that a credential sees of an org. Each of the lists may fail by itself."""
    credential, org = scope
    where = f"org {org} through credential {credential}"
    if (fly := flies.get(credential)) is None:
        known = ", ".join(flies)
        return Sight(credential, org, problems=(f"{where}: the settings have no such credential, only {known}",))
    sight, problems = Sight(credential, org), []
    try:
        sight = replace(sight, apps=tuple(await fly.list_apps(org)))
    except FlyError as error:
        problems.append(f"{where}: apps can't be listed: {error}")
    try:
        async for machines in fly.org_machine_pages(org, include_deleted=True):
            sight = replace(sight, machines=sight.machines + machines.rows)
            problems += _unread(where, "machines", machines.error_regions)
    except FlyError as error:
        problems.append(f"{where}: machines can't be listed: {error}")
    try:
        async for volumes in fly.org_volume_pages(org, include_deleted=True):
            sight = replace(sight, volumes=sight.volumes + volumes.volumes)
            problems += _unread(where, "volumes", volumes.error_regions)
    except FlyError as error:
        problems.append(f"{where}: volumes can't be listed: {error}")
    return replace(sight, problems=tuple(dict.fromkeys(problems)))


def _unread(where: str, what: str, regions: Sequence[str]) -> list[str]:
    return [f"{where}: Fly can't read its {what} in {', '.join(regions)}"] if regions else []


async def _exists(fly: Fly, finding: Finding) -> bool:
    """Asks for the one thing: lists lag."""
    try:
        match finding.kind:
            case "machine":
                return (await fly.get_machine(finding.app, finding.id)).state != "destroyed"
            case "volume":
                return not (await fly.get_volume(finding.app, finding.id)).deleted
            case _:
                await fly.get_app(finding.app)
                return True
    except NotFound:
        return False
