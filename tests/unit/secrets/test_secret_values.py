"""The values for a bundle: read by name, shared by those who ask at once, forgotten; the same from the cache alone."""

import asyncio
import base64
from typing import Any

import pytest

from roost.kube.client import Gone, Unreachable
from roost.kube.records import Cache, Key, record
from roost.secrets.lookup import Lookup
from roost.secrets.state import Ref
from roost.secrets.table import SecretTable
from roost.secrets.values import SHARED_SECONDS, NotNow, Values

pytestmark = pytest.mark.looptime
API, TEAM = Ref("llm", "api"), "team"
ADA = Key("Agent", TEAM, "ada")


class Core:
    """The GET of core objects; each takes 50 ms and answers what was there when it came."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, str]] = {}
        self.reads: list[str] = []
        self.fails = False

    async def get(self, path: str) -> dict[str, Any]:
        name = path.rpartition("/")[2]
        self.reads.append(name)
        found = dict(self.values[name]) if name in self.values else None
        await asyncio.sleep(0.05)
        if self.fails:
            raise Unreachable(f"GET {path}", 500, "no")
        if found is None:
            raise Gone(f"GET {path}", 404, "not found")
        return {"data": {k: base64.b64encode(v.encode()).decode() for k, v in found.items()}}


class Room:
    def __init__(self) -> None:
        self.core, self.cache = Core(), Cache()
        self.table = SecretTable(Lookup(self.cache, "roost-system"), lambda _: None)
        self.values = Values(self.core, self.table, asyncio.get_running_loop().time)  # type: ignore[arg-type]

    def put(self, key: Key, spec: dict[str, Any], status: dict[str, Any] | None = None) -> None:
        meta = {"namespace": key.namespace, "name": key.name, "uid": str(key), "resourceVersion": "1"}
        meta |= {"creationTimestamp": "2026-11-21T10:00:00Z"}
        self.cache.put(record({"kind": key.kind, "metadata": meta, "spec": spec, "status": status or {}}))

    def secret(self, name: str = "llm", status: dict[str, Any] | None = None, **spec: Any) -> None:
        self.put(Key("Secret", TEAM, name), {"source": {"secretRef": {"name": f"{name}-1"}}} | spec, status)


async def test_a_thousand_agents_that_fetch_after_one_change_cost_a_few_reads() -> None:
    room = Room()
    room.secret()
    room.core.values["llm-1"] = {"api": "new"}

    async def fetch(n: int) -> str:
        await asyncio.sleep(n / 1000)
        return (await room.values.of(Key("Agent", TEAM, f"a-{n}"), [API]))[API]

    assert set(await asyncio.gather(*map(fetch, range(1000)))) == {"new"}
    assert len(room.core.reads) <= 3


async def test_a_value_stays_in_memory_for_half_a_second_and_no_longer() -> None:
    room = Room()
    room.secret()
    room.core.values["llm-1"] = {"api": "marker"}
    await room.values.of(ADA, [API])
    assert room.values._reads
    await asyncio.sleep(SHARED_SECONDS + 0.01)
    assert not room.values._reads


async def test_what_was_read_before_is_not_used_where_it_lacks_something_or_a_fresh_read_is_asked_for() -> None:
    room = Room()
    room.secret()
    room.core.values["llm-1"] = {"other": "x"}
    with pytest.raises(NotNow, match="secret llm lacks key api"):
        await room.values.of(ADA, [API])
    room.core.values["llm-1"] = {"api": "one"}
    assert (await room.values.of(ADA, [API]))[API] == "one"
    room.core.values["llm-1"] = {"api": "two"}
    assert (await room.values.of(ADA, [API]))[API] == "one", "within half a second"
    assert (await room.values.of(ADA, [API], fresh=True))[API] == "two"


async def test_a_failed_read_fails_those_who_wait_for_it_and_nobody_after() -> None:
    room = Room()
    room.secret()
    room.core.values["llm-1"], room.core.fails = {"api": "x"}, True
    answers = await asyncio.gather(*(room.values.of(ADA, [API]) for _ in range(3)), return_exceptions=True)
    assert [type(a) for a in answers] == [Unreachable] * 3
    assert len(room.core.reads) == 1
    room.core.fails = False
    assert (await room.values.of(ADA, [API]))[API] == "x"


async def test_one_who_leaves_while_a_read_is_shared_takes_it_from_nobody() -> None:
    room = Room()
    room.secret()
    room.core.values["llm-1"] = {"api": "x"}
    first, second = (asyncio.create_task(room.values.of(ADA, [API])) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    assert (await second)[API] == "x"


@pytest.mark.parametrize(
    ("data", "keys", "says"),
    [
        ({"api": "hunter2"}, [{"name": "api", "pattern": "^sk-"}], "lacks key api"),
        ({"api": "x"}, [{"name": "token"}], "lacks key api"),
        ({"api": "a\0b"}, [], "holds no text in key api"),
        (None, [], "llm-1 can't be read"),
    ],
)
async def test_what_can_not_be_used_is_not_given_out(data: dict[str, str] | None, keys: Any, says: str) -> None:
    room = Room()
    room.secret(keys=keys)
    if data is not None:
        room.core.values["llm-1"] = data
    with pytest.raises(NotNow, match=says):
        await room.values.of(ADA, [API])


async def test_a_replica_that_only_has_the_cache_gives_out_what_the_stage_of_a_rotation_says() -> None:
    room = Room()
    status = {"activeRef": "llm-1", "previousRef": "llm-0", "rotation": {"at": "team/ada", "since": "x"}}
    room.secret(status=status, rotation={"strategy": "Staged"})
    room.core.values |= {"llm-0": {"api": "old"}, "llm-1": {"api": "new"}}
    assert (await room.values.of(ADA, [API]))[API] == "new"
    assert (await room.values.of(Key("Agent", TEAM, "bob"), [API]))[API] == "old"


async def test_an_agent_whose_bot_belongs_to_an_older_one_gets_no_token() -> None:
    room = Room()
    room.secret()
    room.core.values["llm-1"] = {"api": "x"}
    said = {"conditions": [{"type": "SecretsResolved", "status": "False", "reason": "BotTokenTaken"}]}
    room.put(ADA, {}, said)
    with pytest.raises(NotNow, match="in use by an older agent"):
        await room.values.of(ADA, [API])
    assert await room.values.of(ADA, []) == {}
    assert room.core.reads == []
