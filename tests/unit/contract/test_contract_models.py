"""The messages: what goes out comes in again, what is unknown is kept, what is hostile is refused."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from roost_agent.contract import (
    HOT,
    BundleAgent,
    BundleBridge,
    BundleChannel,
    BundleChannels,
    BundleFile,
    BundleHeartbeat,
    BundleModel,
    BundleOpenClaw,
    BundleProvider,
    BundleRuntime,
    BundleSkills,
    BundleTelemetry,
    Checkin,
    Command,
    ConfigBundle,
    DmPolicy,
    Heartbeat,
    HeartbeatAnswer,
    HttpGet,
    LastExit,
    Readiness,
    RuntimeKind,
    Skill,
    SkillFile,
    WorkspaceFile,
    WorkspacePolicy,
    canonical,
    instant,
    revision,
    seed_gateway_token,
)

plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
no_nul = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
word = st.text(st.sampled_from("abcXYZ0189_-"), min_size=1, max_size=12)
variables = st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True), no_nul, max_size=4)
readiness = st.builds(
    Readiness,
    http_get=st.none() | st.builds(HttpGet, path=st.just("/healthz"), port=st.integers(1, 65535)),
    initial_deadline_seconds=st.integers(1, 86400),
)
runtimes = st.builds(
    BundleRuntime,
    kind=st.sampled_from([RuntimeKind.COMMAND, RuntimeKind.OPENCLAW]),
    version=word,
    command=st.lists(no_nul, min_size=1, max_size=4),
    readiness=st.none() | readiness,
    restarted_at=st.none() | word,
)
files = st.lists(
    st.builds(
        BundleFile, path=st.lists(word, min_size=1, max_size=3).map("/".join), content=plain, mode=st.just("0640")
    ),
    max_size=3,
    unique_by=lambda f: f.path,
)
channel = st.none() | st.builds(
    BundleChannel, dm_policy=st.sampled_from([DmPolicy.PAIRING, DmPolicy.OPEN]), allow_from=st.lists(word, max_size=2)
)
bundles = st.builds(
    ConfigBundle,
    model=st.none() | st.builds(BundleModel, default=word, fallbacks=st.lists(word, max_size=2)),
    providers=st.lists(st.builds(BundleProvider, id=word, base_url=st.none() | word), max_size=2),
    channels=st.builds(BundleChannels, telegram=channel, slack=channel),
    soul=st.none() | plain,
    workspace=st.lists(st.builds(WorkspaceFile, path=word, content=plain), max_size=2),
    revision=word,
    generation=st.integers(0, 2**53 - 1),
    agent=st.builds(BundleAgent, did=word, namespace=word, name=word, uid=word, fleet=st.none() | word),
    runtime=runtimes,
    env=variables,
    secret_env=variables,
    files=files,
)
SEED_HEARTBEAT: dict[str, Any] = {
    "status": "running",
    "openclawVersion": "2026.2.26",
    "machineId": "fly-machine-id",
    "uptimeSeconds": 3600,
    "memoryMb": 512,
    "computeVersion": "0.1.0",
}
FULL_HEARTBEAT: dict[str, Any] = SEED_HEARTBEAT | {
    "machineVersion": "01JV",
    "bundleRevision": "ab" * 32,
    "bootPhase": "done",
    "ready": True,
    "degraded": ["volume: No space left on device"],
    "runtime": {
        "state": "running",
        "pid": 7,
        "restarts": 1,
        "lastExit": {"code": 1, "signal": None, "at": "2026-11-21T10:00:00.5+00:00"},
    },
    "restartedAt": "2026-11-21T10:00:00Z",
    "disk": {"usedBytes": 1, "totalBytes": 2},
    "lastCommandId": "restart:2026-11-21T10:00:00Z",
    "channels": {"telegram": {"state": "connected", "lastError": None}},
    "pendingPairings": 1,
    "activeSessions": 0,
    "lastActivityAt": "2026-11-21T10:00:00.000+00:00",
    "nextScheduledRunAt": "2026-11-21T11:30:00Z",
    "connections": 2,
}


@given(bundles)
def test_a_bundle_comes_back_as_it_was(bundle: ConfigBundle) -> None:
    assert ConfigBundle.read(bundle.write()) == bundle
    assert ConfigBundle.read(bundle.model_dump_json()) == bundle


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3),
    max_leaves=5,
)


@given(bundles, json_values, st.from_regex(r"x[A-Z][a-z]{1,8}", fullmatch=True))
def test_what_is_unknown_is_kept_but_never_written(bundle: ConfigBundle, value: Any, name: str) -> None:
    raw = bundle.model_dump(mode="json")
    raw[name] = raw["runtime"][name] = raw["agent"][name] = value
    read = ConfigBundle.read(json.dumps(raw))
    assert read.model_dump(mode="json") == raw
    with pytest.raises(ValueError, match=f"has no field {name}"):
        read.write()


def test_a_slip_when_writing_is_refused() -> None:
    runtime = BundleRuntime(kind="Command", version="1", command=["x"], restarted="now")  # type: ignore[call-arg, unused-ignore]
    bundle = ConfigBundle(
        revision="r", generation=1, agent=BundleAgent(did="d", namespace="n", name="a", uid="u"), runtime=runtime
    )
    with pytest.raises(ValueError, match="ConfigBundle has no field restarted"):
        bundle.write()


@given(bundles, word, st.integers(1, 99))
def test_only_what_the_process_depends_on_restarts_it(bundle: ConfigBundle, text: str, number: int) -> None:
    assert bundle.runtime is not None
    same = bundle.model_copy(
        update={
            "revision": text,
            "generation": number,
            "heartbeat": bundle.heartbeat.model_copy(update={"interval_seconds": number}),
            "soul": text,
            "runtime": bundle.runtime.model_copy(update={"restarted_at": text}),
        }
    )
    assert same.runtime_inputs() == bundle.runtime_inputs()
    for other in (
        {"env": bundle.env | {"ANOTHER_VARIABLE": text}},
        {"secret_env": bundle.secret_env | {"ANOTHER_VARIABLE": text}},
        {"files": [*bundle.files, BundleFile(path="another/file", content=text)]},
        {"runtime": bundle.runtime.model_copy(update={"command": [*(bundle.runtime.command or []), text]})},
        {"runtime": bundle.runtime.model_copy(update={"version": bundle.runtime.version + "x"})},
    ):
        assert bundle.model_copy(update=other).runtime_inputs() != bundle.runtime_inputs()


def test_what_is_hot_is_marked_in_the_schema_and_restarts_nothing() -> None:
    whole = ConfigBundle(
        revision="r",
        generation=1,
        agent=BundleAgent(did="d", namespace="n", name="a", uid="u"),
        runtime=BundleRuntime(kind="OpenClaw", version="2026.9.6"),
    )
    skill = Skill(name="weather", version="1", files=[SkillFile(path="SKILL.md", content="x", sha256="0" * 64)])
    changes: dict[str, Any] = {
        "model": BundleModel(default="anthropic/claude-sonnet-4-6"),
        "providers": [BundleProvider(id="anthropic", api_key_env="ANTHROPIC_API_KEY")],
        "channels": BundleChannels(telegram=BundleChannel(token_env="TELEGRAM_BOT_TOKEN")),
        "gateway": whole.gateway.model_copy(update={"port": 3999}),
        "env": {"A": "1"},
        "secret_env": {"B": "2"},
        "files": [BundleFile(path="a", content="b")],
        "runtime": BundleRuntime(kind="OpenClaw", version="2026.9.7"),
        "bridge": BundleBridge(enabled=True),
        "didcomm": whole.didcomm.model_copy(update={"hub_port": 1}),
        "openclaw": BundleOpenClaw(overlay={"a": 1}),
        "soul": "kind",
        "workspace": [WorkspaceFile(path="AGENTS.md", content="x", policy=WorkspacePolicy.OVERWRITE)],
        "skills": BundleSkills(items=[skill]),
        "heartbeat": BundleHeartbeat(interval_seconds=7),
        "telemetry": BundleTelemetry(interval_seconds=7),
        "revision": "s",
        "generation": 2,
        "agent": whole.agent.model_copy(update={"ordinal": 3}),
    }
    parts = ConfigBundle.model_json_schema(by_alias=True)["properties"]
    for name, value in changes.items():
        other = whole.model_copy(update={name: value})
        hot = parts[ConfigBundle.model_fields[name].alias].get(HOT, False)
        assert hot == (other.runtime_inputs() == whole.runtime_inputs()), name
    assert sorted(n for n in changes if parts[ConfigBundle.model_fields[n].alias].get(HOT)) == sorted(
        ["agent", "generation", "heartbeat", "revision", "skills", "soul", "telemetry", "workspace"]
    )


def test_a_command_needs_its_command_and_openclaw_none() -> None:
    assert BundleRuntime.read('{"kind": "OpenClaw", "version": "2026.9.6"}').command is None
    assert BundleRuntime.read('{"kind": "Quantum", "version": "1"}').kind == "unknown"
    with pytest.raises(ValidationError, match="needs a command"):
        BundleRuntime.read('{"kind": "Command", "version": "1"}')


@given(bundles, word, st.integers(0, 99), st.binary(min_size=32, max_size=32))
def test_the_revision_is_of_the_content_alone(bundle: ConfigBundle, text: str, number: int, root: bytes) -> None:
    raw = bundle.model_dump(mode="json")
    whole = revision(root, raw)
    volatile = raw | {"revision": text, "generation": number, "runtime": raw["runtime"] | {"restartedAt": text}}
    assert revision(root, volatile) == whole
    assert revision(root, raw | {"heartbeat": {"intervalSeconds": 3599}}) != whole
    assert revision(root, raw | {"env": raw["env"] | {"ANOTHER_VARIABLE": text}}) != whole
    assert revision(root[::-1] + b"x", raw) != whole
    assert raw == bundle.model_dump(mode="json")


def test_a_revoked_bundle_needs_nothing_more() -> None:
    raw = {"revision": "r", "generation": 1, "agent": {"did": "d", "namespace": "n", "name": "a", "uid": "u"}}
    assert ConfigBundle.read(json.dumps(raw | {"revoked": True})).runtime is None
    with pytest.raises(ValidationError, match="needs a runtime"):
        ConfigBundle.read(json.dumps(raw))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "..",
        "../x",
        "a/../../x",
        "a/..",
        "a\0b",
        ".",
        "a/",
        ".roost/bundle.sealed",
        "./.roost/x",
        ".roost",
    ],
)
def test_a_file_stays_inside(path: str) -> None:
    with pytest.raises(ValidationError) as caught:
        BundleFile(path=path, content="hidden content")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("path", ["a", "a/b.c", ".config/x", "..a/b", "a b", ".roost.conf", "é"])
def test_an_ordinary_file_is_taken(path: str) -> None:
    assert BundleFile(path=path, content="").path == path


@pytest.mark.parametrize("change", [{"mode": "4755"}, {"mode": "rw"}, {"mode": "0888"}, {"content": None}])
def test_a_file_with_an_odd_mode_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BundleFile.read(json.dumps({"path": "a", "content": ""} | change))


def test_an_error_never_shows_the_value() -> None:
    raw = {
        "secretEnv": {"KEY": ["s3cret"]},
        "files": [{"path": "a", "content": {"b": "s3cret"}}],
        "env": {"s": "\0s3cret"},
    }
    with pytest.raises(ValidationError) as caught:
        ConfigBundle.read(json.dumps(raw))
    assert "secretEnv.KEY" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_the_seeds_heartbeat_is_understood() -> None:
    beat = Heartbeat.read(json.dumps(SEED_HEARTBEAT))
    assert (beat.status, beat.ready, beat.boot_phase) == ("running", False, "unknown")


def test_a_full_heartbeat_comes_back_as_it_was() -> None:
    beat = Heartbeat.read(json.dumps(FULL_HEARTBEAT))
    assert json.loads(beat.write()) == FULL_HEARTBEAT
    assert Heartbeat.read(beat.write()) == beat


def test_a_word_from_another_age_is_unknown_not_refused() -> None:
    raw = FULL_HEARTBEAT | {"status": "hibernating", "bootPhase": "transcend", "runtime": {"state": "dreaming"}}
    beat = Heartbeat.read(json.dumps(raw))
    assert beat.runtime is not None
    assert [beat.status, beat.boot_phase, beat.runtime.state] == ["unknown"] * 3
    answer = HeartbeatAnswer.read(b'{"commands": [{"id": "levitate:x", "type": "levitate", "until": 5}]}')
    assert [c.type for c in answer.commands] == ["unknown"]
    assert Command(id="stop:x", type="stop").type == "stop"


def leaves(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in a JSON value the strings, numbers and lists are."""
    if isinstance(value, dict):
        return [found for k, v in value.items() for found in leaves(v, (*at, k))]
    inner = leaves(value[0], (*at, 0)) if isinstance(value, list) else []
    return [at, *inner]


def put(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    copy = json.loads(json.dumps(value))
    holder = copy
    for part in at[:-1]:
        holder = holder[part]
    holder[at[-1]] = new
    return copy


@pytest.mark.parametrize("at", leaves(FULL_HEARTBEAT), ids=str)
@pytest.mark.parametrize(
    "hostile",
    ["x" * 301, ["x"] * 17, ["x" * 201], 2**63, -1, 1e999, {"a": 1}, ["a\nb"], ["a\x9bb"]],
    ids=lambda v: repr(v)[:16],
)
def test_nothing_hostile_passes(at: tuple[Any, ...], hostile: Any) -> None:
    """Whatever stands in a field, either it is refused or what is kept of it is short and plain."""
    body = json.dumps(put(FULL_HEARTBEAT, at, hostile))
    try:
        beat = Heartbeat.read(body)
    except ValidationError as error:
        said = str(error)
    else:
        said = beat.write().decode()
        assert len(said) < 1000
    assert "x" * 301 not in said
    assert "\\n" not in said.replace("\n", "")


def test_text_that_forges_is_refused() -> None:
    for field in (
        "openclawVersion",
        "machineId",
        "machineVersion",
        "computeVersion",
        "bundleRevision",
        "lastCommandId",
        "restartedAt",
    ):
        for text in ("a\nb", "a\x00", "é", "\x7f"):
            with pytest.raises(ValidationError):
                Heartbeat.read(json.dumps(FULL_HEARTBEAT | {field: text}))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "3.5", '"3600"', "true"])
def test_only_whole_numbers_are_numbers(number: str) -> None:
    body = json.dumps(SEED_HEARTBEAT).replace("3600", number)
    with pytest.raises(ValidationError):
        Heartbeat.read(body)


def test_what_an_agent_does_not_say_is_none_and_not_zero() -> None:
    for silent in ({}, dict.fromkeys(("activeSessions", "lastActivityAt", "nextScheduledRunAt", "connections"))):
        beat = Heartbeat.read(json.dumps(SEED_HEARTBEAT | silent))
        said = (beat.active_sessions, beat.last_activity_at, beat.next_scheduled_run_at, beat.connections)
        assert said == (None, None, None, None)


@pytest.mark.parametrize("field", ["lastActivityAt", "nextScheduledRunAt"])
@pytest.mark.parametrize(
    "text",
    [
        "2026-99-99T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-11-21T25:00:00Z",
        "2026-11-21T10:00:00+99:00",
        "0000-11-21T10:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "\u0968\u0966\u0968\u096c-11-21T10:00:00Z",
        "2026-11-21T10:00:00",
        "2026-11-21",
        "soon",
        "",
    ],
)
def test_a_time_that_there_is_not_is_refused(field: str, text: str) -> None:
    """A planner counts with these: what was taken must be a moment."""
    with pytest.raises(ValidationError, match=field):
        Heartbeat.read(json.dumps(SEED_HEARTBEAT | {field: text}))


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_time_that_there_is_is_read_as_it_was_meant(moment: datetime) -> None:
    for text in (moment.isoformat(), moment.isoformat().replace("+00:00", "Z")):
        read = Heartbeat.read(json.dumps(SEED_HEARTBEAT | {"lastActivityAt": text})).last_activity_at
        assert read is not None
        assert instant(read) == moment


@given(plain)
def test_any_exit_time_that_is_taken_is_one(text: str) -> None:
    try:
        at = LastExit(code=0, at=text).at
    except ValidationError:
        return
    assert at[10] == "T"


@given(json_values, st.randoms(use_true_random=False))
def test_canonical_has_one_text_for_one_value(value: Any, random: Any) -> None:
    def shuffled(v: Any) -> Any:
        if isinstance(v, dict):
            items = list(v.items())
            random.shuffle(items)
            return {k: shuffled(x) for k, x in items}
        return [shuffled(x) for x in v] if isinstance(v, list) else v

    assert canonical(shuffled(value)) == canonical(value)
    assert json.loads(canonical(value)) == value


def test_canonical_refuses_what_json_does_not_have() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical({"a": float("nan")})


def test_the_contract_brings_no_framework() -> None:
    program = (
        "import sys, roost_agent.contract; print([m for m in ('aiohttp', 'asyncio', 'structlog') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


DATA = Path(__file__).parent / "data"


def test_the_seeds_checkin_is_understood() -> None:
    sample = json.loads((DATA / "controller-checkin.json").read_text())
    said = Checkin.read(json.dumps(sample["valid_body"]))
    assert json.loads(said.model_dump_json(exclude_unset=True)) == sample["valid_body"]
    whole = sample["valid_body"] | sample["optional_fields"]
    assert json.loads(Checkin.read(json.dumps(whole)).model_dump_json(exclude_unset=True)) == whole
    with pytest.raises(ValidationError, match="uptimeSeconds"):
        Checkin.read(json.dumps(whole | {"uptimeSeconds": "86461"}))


def test_the_seeds_heartbeat_sample_is_understood() -> None:
    sample = json.loads((DATA / "heartbeat-contract.json").read_text())
    body = sample["request"]["body"]
    assert json.loads(Heartbeat.read(json.dumps(body)).model_dump_json(exclude_unset=True)) == body
    for word in sample["commands"]:
        assert Command(id=f"{word}:x", type=word).type == word


def test_the_seeds_gateway_tokens_are_made_as_they_were() -> None:
    sample = json.loads((DATA / "gateway-token-vectors.json").read_text())
    for row in sample["vectors"]:
        assert seed_gateway_token(row["secret"], row["sandboxId"]) == row["token"]
