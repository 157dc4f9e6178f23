"""Every field of an Agent that reaches Fly has its effect there: what is called, what is sent, what exists.

Told by the simulated Fly's own state and record, with the whole Agents' room at work (see `operator_world`). Fields
that end in the agent's configuration are seen in the bundle that it would fetch.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog

from flysim.hosts import Size
from flysim.records import Host
from operator_world import ROOTS, World, in_a_world, operator_world
from roost.agents.sessions import Session
from roost.kube.records import Key
from roost.settings import Settings
from store import NAMESPACE

pytestmark = pytest.mark.looptime

OPEN = {"public": "Gateway", "autostart": True}
IDLE = {"action": "Stop", "afterSeconds": 60}
IDLE_SIGNS = {"sessions": 0, "connections": 0}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    yield
    structlog.reset_defaults()


async def running(world: World, name: str = "ada", **blocks: Any) -> None:
    await world.apply(name, **blocks)
    await world.until_phase(name, "Running", 300)


async def change(world: World, name: str = "ada", **blocks: Any) -> list[str]:
    """Edits a running Agent, waits until it runs again, and tells the calls that this took."""
    before = world.mark()
    await world.edit(name, **blocks)
    await world.until_phase(name, "Running", 300)
    return world.calls(name, before)


async def kill_host(world: World, host: Host, status: str = "dead") -> None:
    await world.admin("POST", f"hosts/{host.id}", {"status": status})


async def bundle(world: World, name: str = "ada") -> Any:
    assert world.operator is not None
    did = world.status(name)["did"]
    return await world.operator.sessions.bundle(Session(Key("Agent", NAMESPACE, name), did))


async def idle(world: World, name: str = "ada", **signs: Any) -> None:
    """Its agent says that it has nothing to do."""
    for sign, value in (IDLE_SIGNS | signs).items():
        setattr(world.inmates[name], sign, value)


def states(world: World, name: str = "ada") -> list[str]:
    return [machine.state for machine in world.machines(name)]


# --- The whole -----------------------------------------------------------------------------------------------------


@in_a_world
async def test_desired_state_stopped_stops_the_machine_and_keeps_the_volume(world: World) -> None:
    await running(world)
    machine, volume = world.machine("ada").id, world.volume("ada").id
    before = world.mark()
    await world.edit("ada", desiredState="Stopped")
    await world.until_phase("ada", "Stopped")
    assert "stop_machine" in world.calls("ada", before)
    assert (world.machine("ada").id, world.machine("ada").state) == (machine, "stopped")
    await world.edit("ada", desiredState="Running")
    await world.until_phase("ada", "Running")
    assert "start_machine" in world.calls("ada", before)
    assert (world.machine("ada").id, world.volume("ada").id) == (machine, volume)


@in_a_world
async def test_desired_state_suspended_suspends_the_machine(world: World) -> None:
    await running(world)
    before = world.mark()
    await world.edit("ada", desiredState="Suspended")
    await world.until_phase("ada", "Suspended")
    assert "suspend_machine" in world.calls("ada", before)
    assert "stop_machine" not in world.calls("ada", before)
    assert states(world) == ["suspended"]


@in_a_world
async def test_an_agent_that_is_never_to_run_makes_nothing(world: World) -> None:
    await world.apply("ada", desiredState="Stopped")
    await world.until_phase("ada", "Stopped")
    assert world.calls() == []


@pytest.mark.parametrize("by", ["spec", "annotation"])
@in_a_world
async def test_revoked_stops_it_for_good_and_closes_its_ports(world: World, by: str) -> None:
    await running(world, machine=OPEN)
    assert world.config("ada")["services"]
    if by == "spec":
        await world.edit("ada", revoked=True)
    else:
        await world.annotate("ada", revoked="true")
    await world.until(lambda: world.phase("ada") == "Revoked", about=["ada"])
    assert states(world) == ["stopped"]
    assert not world.config("ada").get("services")
    assert (await bundle(world)).revoked
    await world.settle(1200)
    assert states(world) == ["stopped"]


@in_a_world
async def test_paused_leaves_everything_as_it_is(world: World) -> None:
    await running(world)
    await world.edit("ada", paused=True, machine={"memoryMb": 2048})
    before = world.mark()
    await world.admin("DELETE", f"machines/{world.machine('ada').id}")
    await world.settle(900)
    assert world.calls("ada", before) == []
    assert world.condition("ada", "Reconciling")[:2] == ("False", "Paused")
    await world.edit("ada", paused=False)
    await world.until_phase("ada", "Running")
    assert world.config("ada")["guest"]["memory_mb"] == 2048


@in_a_world
async def test_deletion_policy_delete_takes_all_away(world: World) -> None:
    await running(world)
    await world.delete("ada")
    await world.until_gone("ada")
    assert world.sim.world.apps == {}


@in_a_world
async def test_deletion_policy_retain_takes_the_machine_and_marks_what_stays(world: World) -> None:
    await running(world, deletionPolicy="Retain")
    volume = world.volume("ada").id
    await world.delete("ada")
    await world.until_gone("ada")
    assert world.machines("ada") == []
    assert world.volume("ada").id == volume
    assert "ROOST_RETAINED" in world.app("ada").secrets
    await running(world)
    assert world.volume("ada").id == volume
    assert "ROOST_RETAINED" not in world.app("ada").secrets


@in_a_world
async def test_restarted_at_restarts_the_runtime_and_not_the_machine(world: World) -> None:
    await running(world)
    before = world.mark()
    await world.edit("ada", restartedAt="2026-11-21T10:00:00Z")
    await world.until(lambda: world.inmates["ada"].restarted_at == "2026-11-21T10:00:00Z", about=["ada"])
    assert world.calls("ada", before) == []
    assert (await bundle(world)).runtime.restarted_at == "2026-11-21T10:00:00Z"


@in_a_world
async def test_display_name_costs_no_restart(world: World) -> None:
    await running(world, identity={"displayName": "Ada"})
    assert await change(world, identity={"displayName": "Countess"}) == []
    assert world.inmates["ada"].boots == 1


@in_a_world
async def test_token_epoch_gives_the_machine_another_token(world: World) -> None:
    await running(world)
    digest = world.app("ada").secrets["AS_HEARTBEAT_TOKEN"].digest
    calls = await change(world, identity={"tokenEpoch": 1})
    assert calls[:2] == ["set_secrets", "update_machine"]
    assert world.app("ada").secrets["AS_HEARTBEAT_TOKEN"].digest != digest
    assert len(set(world.inmates["ada"].tokens)) == 2
    assert world.config("ada")["metadata"]["roost_token_epoch"] == "1"


@in_a_world
async def test_a_new_token_root_reaches_every_machine_a_few_at_a_time(world: World) -> None:
    """The root before is kept until then: an agent with its token is no stranger."""
    names = [f"agent-{n}" for n in range(3)]
    for name in names:
        await running(world, name)
    old = {name: world.inmates[name].tokens[-1] for name in names}
    world.roots = replace(ROOTS, token=b"u" * 32, token_before=ROOTS.token)
    await world.restart()
    began = {name: world.mark() for name in names}
    assert world.operator is not None
    did = world.status("agent-0")["did"]
    assert world.operator.sessions.authenticate(did, old["agent-0"]) is not None
    await world.until(lambda: all(len(set(world.inmates[name].tokens)) == 2 for name in names), 600)
    updates = [(c, name) for name in names for c in world.calls(name, began[name]) if c == "update_machine"]
    assert len(updates) == len(names)
    for name in names:
        assert world.operator.sessions.authenticate(world.status(name)["did"], world.inmates[name].tokens[-1])
        assert world.operator.sessions.authenticate(world.status(name)["did"], old[name]) is None  # it was proved
    world.roots = replace(ROOTS, token=b"u" * 32)
    await world.restart()
    mark = world.mark()
    await world.settle(120)
    assert [c for name in names for c in world.calls(name, mark) if c == "update_machine"] == []


# --- fly -----------------------------------------------------------------------------------------------------------


async def test_credential_names_the_token_that_calls_are_made_with() -> None:
    two = {"default": {}, "second": {"secretName": "roost-fly-2"}}
    async with operator_world({"fly": {"org": "personal", "credentials": two}}) as world:
        world.sim.replace_tokens(["fm2_second"])
        world.store.put_core_secret("roost-system", "roost-fly-2", {"token": "fm2_second"})
        await running(world, fly={"credential": "second"})
        await world.apply("bob")
        await world.settle(30)
        assert world.machines("bob") == []
        assert world.condition("bob", "Stalled")[1] == "FlyUnauthorized"


@in_a_world
async def test_a_credential_that_is_not_in_the_settings_is_refused_with_a_sentence(world: World) -> None:
    await world.apply("ada", fly={"credential": "none"})
    await world.until_phase("ada", "Failed")
    assert world.calls() == []
    assert 'spec.fly.credential: "none"' in world.condition("ada", "Stalled")[2]


SCOPES = [
    ({"namespaces": ["team-b"]}, {}, 'metadata.namespace: Fly credential "default" does not serve "team"'),
    ({"orgs": ["personal"]}, {"org": "acme"}, 'spec.fly.org: Fly credential "default" does not serve "acme"'),
    (
        {"sharedApps": []},
        {"appStrategy": "Shared", "app": "common"},
        'spec.fly.app: Fly credential "default" does not serve "common"',
    ),
    (
        {"networks": ["ours"]},
        {"network": "theirs"},
        'spec.fly.network: Fly credential "default" does not serve "theirs"',
    ),
]


@pytest.mark.parametrize(("scope", "fly", "said"), SCOPES, ids=[next(iter(s[0])) for s in SCOPES])
async def test_a_credential_serves_only_whom_the_settings_name(
    scope: dict[str, Any], fly: dict[str, Any], said: str
) -> None:
    async with operator_world({"fly": {"org": "personal", "credentials": {"default": scope}}}) as world:
        await world.apply("ada", fly=fly)
        await world.until_phase("ada", "Failed")
        assert world.calls() == []
        assert world.condition("ada", "Stalled")[2].startswith(said)
        assert f"fly.credentials.default.{next(iter(scope))}" in world.condition("ada", "Stalled")[2]


async def test_what_a_credential_serves_no_more_is_left_alone_and_still_taken_away() -> None:
    async with operator_world({"fly": {"org": "personal"}}) as world:
        await running(world)
        narrow = {"fly": {"org": "personal", "credentials": {"default": {"namespaces": ["team-b"]}}}}
        world.settings = Settings.model_validate(narrow | {"namespace": world.settings.namespace})
        await world.restart()
        before = len(world.calls("ada"))
        await world.edit("ada", machine={"memoryMb": 2048})
        await world.settle(60)
        assert world.condition("ada", "Stalled")[0] == "True"
        assert len(world.calls("ada")) == before
        await world.delete("ada")
        await world.until_gone("ada")
        assert world.machines("ada") == []


async def test_a_token_that_is_missing_is_named_with_the_command_that_brings_it() -> None:
    one = {"prod": {"secretName": "fly-prod", "secretKey": "key", "orgs": ["personal"]}}
    async with operator_world({"fly": {"org": "personal", "credentials": one}}) as world:
        world.store.drop_core_secret("roost-system", "fly-prod")
        await world.apply("ada")
        await world.settle(30)
        _, reason, said = world.condition("ada", "Stalled")
        assert reason == "FlyTokenMissing"
        assert "kubectl -n roost-system create secret generic fly-prod --from-literal=key=" in said


@in_a_world
async def test_org_is_where_the_app_is_made(world: World) -> None:
    await running(world, fly={"org": "acme"})
    assert world.app("ada").org == "acme"


@in_a_world
async def test_app_names_the_app(world: World) -> None:
    await running(world, fly={"app": "my-own-app"})
    assert list(world.sim.world.apps) == ["my-own-app"]


@in_a_world
async def test_network_is_what_the_app_joins_and_is_its_own_when_left_out(world: World) -> None:
    await running(world, fly={"network": "lab"})
    await running(world, "bob")
    assert world.app("ada").network == "lab"
    assert world.app("bob").network == world.app("bob").name


@in_a_world
async def test_app_strategy_shared_lives_in_an_app_that_is_neither_made_nor_deleted(world: World) -> None:
    await world.by_hand("POST", "/v1/apps", {"name": "everyone", "org_slug": "personal"})
    shared = {"appStrategy": "Shared", "app": "everyone"}
    await running(world, fly=shared)
    await running(world, "bob", fly=shared)
    app = world.sim.world.apps["everyone"]
    assert len(app.machines) == len(app.volumes) == len(app.secrets) == 2
    assert "create_app" not in world.calls()
    assert len(set(world.inmates["ada"].tokens + world.inmates["bob"].tokens)) == 2
    await world.delete("ada")
    await world.until_gone("ada")
    assert [m.config.metadata["roost_name"] for m in app.machines.values() if m.state != "destroyed"] == ["bob"]
    assert len(app.secrets) == 1
    assert "delete_app" not in world.calls()


# --- placement -----------------------------------------------------------------------------------------------------


@in_a_world
async def test_regions_are_taken_in_their_order_and_the_next_when_one_is_full(world: World) -> None:
    world.sim.world.hosts.replace("ams", [])
    await running(world, placement={"regions": ["ams", "fra"]})
    assert (world.machine("ada").region, world.volume("ada").region) == ("fra", "fra")
    await running(world, "bob", placement={"regions": ["lhr", "fra"]})
    assert world.machine("bob").region == "lhr"


@in_a_world
async def test_a_regions_alias_is_opened(world: World) -> None:
    await running(world, placement={"regions": ["eu"]})
    asked = [line for line in world.ledger() if line.get("op") == "platform_placements"]
    assert len(asked) == 1
    assert world.machine("ada").region in {"ams", "arn", "cdg", "fra", "lhr", "mad", "otp", "waw"}


@in_a_world
async def test_regions_that_change_do_not_move_a_volume(world: World) -> None:
    await running(world, placement={"regions": ["ams"]})
    assert await change(world, placement={"regions": ["fra"]}) == []
    assert world.volume("ada").region == "ams"


async def full_host(world: World, relocate: str) -> tuple[str, str]:
    """A stopped Agent whose host has been taken by others; its volume and machine of before."""
    world.sim.world.hosts.replace("iad", [Size(slots=1), Size(slots=1)])
    await running(world, placement={"relocate": relocate})
    await world.edit("ada", desiredState="Stopped")
    await world.until_phase("ada", "Stopped")
    volume, machine = world.volume("ada"), world.machine("ada")
    await world.admin("POST", f"hosts/{volume.host.id}", {"slots": 0})
    await world.edit("ada", desiredState="Running")
    return volume.id, machine.id


@pytest.mark.parametrize("relocate", ["OnCapacity", "OnFailure"])
@in_a_world
async def test_relocate_moves_it_with_its_data_when_its_host_is_full(world: World, relocate: str) -> None:
    volume, machine = await full_host(world, relocate)
    await world.until_phase("ada", "Running", 600)
    assert world.sent("create_volume")[-1]["source_volume_id"] == volume
    assert world.machine("ada").id != machine
    assert world.machine("ada").volume is not None
    assert world.machine("ada").volume.id != volume
    assert world.status("ada")["previousVolume"]["id"] == volume


@in_a_world
async def test_relocate_never_waits_for_room(world: World) -> None:
    volume, machine = await full_host(world, "Never")
    await world.settle(900)
    assert (world.volume("ada").id, world.machine("ada").id) == (volume, machine)
    assert world.condition("ada", "Stalled")[:2] == ("True", "CapacityExhausted")
    await world.admin("POST", f"hosts/{world.volume('ada').host.id}", {"slots": 1})
    await world.until_phase("ada", "Running", 600)


@pytest.mark.parametrize("relocate", ["OnCapacity", "OnFailure"])
@in_a_world
async def test_relocate_on_failure_alone_goes_on_from_a_snapshot_when_its_host_is_lost(
    world: World, relocate: str
) -> None:
    await running(world, placement={"relocate": relocate})
    volume = world.volume("ada")
    await world.admin("POST", f"volumes/{volume.id}/snapshot")
    await kill_host(world, volume.host)
    await world.settle(1200)
    if relocate == "OnCapacity":
        assert len(world.volumes("ada")) == 1
        assert world.condition("ada", "Ready")[:2] == ("False", "HostLost")
        return
    await world.until_phase("ada", "Running", 600)
    assert len(world.volumes("ada")) == 2
    assert world.status("ada")["volume"]["id"] != volume.id
    await kill_host(world, volume.host, "ok")
    await world.settle(300)
    assert [m.volume.id for m in world.machines("ada") if m.volume] == [world.status("ada")["volume"]["id"]]


# --- machine -------------------------------------------------------------------------------------------------------


@in_a_world
async def test_image_is_what_runs_and_its_tag_is_pinned_to_its_digest(world: World) -> None:
    await running(world, machine={"image": "me/agent:1"})
    digest = world.status("ada")["machine"]["image"].partition("@")[2]
    assert digest.startswith("sha256:")
    await world.admin("POST", "images", {"reference": "me/agent:1", "digest": "sha256:" + "0" * 64})
    await change(world, machine={"memoryMb": 2048})
    assert world.config("ada")["image"] == f"me/agent:1@{digest}"
    await change(world, machine={"image": "me/agent:2"})
    assert world.config("ada")["image"].startswith("me/agent:2")


@in_a_world
async def test_cpu_kind_cpus_and_memory_are_the_guest(world: World) -> None:
    await running(world, machine={"cpus": 2, "memoryMb": 2048})
    assert world.config("ada")["guest"] == {"cpu_kind": "shared", "cpus": 2, "memory_mb": 2048}
    calls = await change(world, machine={"cpuKind": "performance", "cpus": 1, "memoryMb": 4096})
    assert calls.count("update_machine") == 1
    assert world.config("ada")["guest"] == {"cpu_kind": "performance", "cpus": 1, "memory_mb": 4096}


@in_a_world
async def test_stop_timeout_is_how_long_the_agent_has_to_end(world: World) -> None:
    await running(world, machine={"stopTimeoutSeconds": 50})
    assert world.config("ada")["stop_config"] == {"signal": "SIGTERM", "timeout": "50s"}
    assert world.config("ada")["env"]["ROOST_STOP_GRACE_SECONDS"] == "48"
    machine = world.runner.machines[world.machine("ada").id]
    machine.frozen = True  # deaf to its signal
    began = world.clock.now()
    await world.edit("ada", desiredState="Stopped")
    await world.until(lambda: states(world) == ["stopped"])
    assert 49 < world.clock.now() - began < 53


@pytest.mark.parametrize(("restart", "policy"), [("Always", "always"), ("OnFailure", "on-failure"), ("Never", "no")])
@in_a_world
async def test_restart_is_flys_policy(world: World, restart: str, policy: str) -> None:
    await running(world, machine={"restart": restart})
    assert world.config("ada")["restart"]["policy"] == policy


@pytest.mark.parametrize(
    ("public", "ports"),
    [("None", []), ("Gateway", [(443, 18789)]), ("All", [(443, 18789), (18790, 18790), (18791, 18791)])],
)
@in_a_world
async def test_public_opens_ports_and_assigns_addresses_once(
    world: World, public: str, ports: list[tuple[int, int]]
) -> None:
    await running(world, machine={"public": public})
    told = world.config("ada").get("services") or []
    assert [(s["ports"][0]["port"], s["internal_port"]) for s in told] == ports
    assert sorted(ip.type for ip in world.app("ada").ips) == (["shared_v4", "v6"] if ports else [])
    await change(world, machine={"memoryMb": 2048})
    assert world.calls("ada").count("assign_ip") == (2 if ports else 0)


@in_a_world
async def test_autostart_is_off_while_the_agent_is_stopped_on_purpose(world: World) -> None:
    await running(world, machine=OPEN)
    assert [s["autostart"] for s in world.config("ada")["services"]] == [True]
    assert [s["autostop"] for s in world.config("ada")["services"]] in ([False], ["off"])
    await world.edit("ada", desiredState="Stopped")
    await world.until_phase("ada", "Stopped")
    assert [s["autostart"] for s in world.config("ada")["services"]] == [False]
    assert states(world) == ["stopped"]
    await world.edit("ada", desiredState="Running")
    await world.until_phase("ada", "Running")
    assert [s["autostart"] for s in world.config("ada")["services"]] == [True]


@in_a_world
async def test_metadata_is_written_without_a_restart_and_taken_away_again(world: World) -> None:
    await running(world, machine={"metadata": {"team": "blue"}})
    version = world.machine("ada").version
    calls = await change(world, machine={"metadata": {"team": "red", "cost": "7"}})
    assert calls == ["patch_metadata"]
    assert world.machine("ada").config.metadata.items() >= {"team": "red", "cost": "7"}.items()
    await change(world, machine={"metadata": {"team": None}})
    assert "team" not in world.machine("ada").config.metadata
    assert world.machine("ada").version == version
    assert world.inmates["ada"].boots == 1


# --- volume --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("needs_restart", [False, True])
@in_a_world
async def test_size_grows_the_volume_in_place(world: World, needs_restart: bool) -> None:
    await running(world, volume={"sizeGb": 2})
    assert world.volume("ada").size_gb == 2
    await world.admin("POST", "volumes", {"extend_needs_restart": needs_restart})
    calls = await change(world, volume={"sizeGb": 5})
    assert world.volume("ada").size_gb == 5
    assert calls[0] == "extend_volume"
    assert ("restart_machine" in calls) is needs_restart
    assert world.inmates["ada"].boots == 1 + needs_restart


@in_a_world
async def test_mount_path_is_where_the_disk_is(world: World) -> None:
    await running(world, volume={"mountPath": "/srv/ada"})
    assert [m["path"] for m in world.config("ada")["mounts"]] == ["/srv/ada"]
    assert world.config("ada")["env"]["DATA_DIR"] == "/srv/ada"


@in_a_world
async def test_snapshot_retention_is_set_and_changed_at_the_volume_alone(world: World) -> None:
    await running(world, volume={"snapshotRetentionDays": 9})
    assert world.volume("ada").snapshot_retention == 9
    assert await change(world, volume={"snapshotRetentionDays": 14}) == ["update_volume"]
    assert world.volume("ada").snapshot_retention == 14


@in_a_world
async def test_auto_extend_is_flys_own_and_growth_is_no_drift(world: World) -> None:
    await running(world, volume={"sizeGb": 2, "autoExtend": {"atPercent": 80, "byGb": 3, "limitGb": 8}})
    mount = world.config("ada")["mounts"][0]
    assert (mount["extend_threshold_percent"], mount["add_size_gb"], mount["size_gb_limit"]) == (80, 3, 8)
    before = world.mark()
    await world.admin("POST", f"volumes/{world.volume('ada').id}/usage", {"bytes": int(1.9 * 2**30)})
    await world.settle(180)
    assert world.volume("ada").size_gb == 5
    assert world.calls("ada", before) == []
    assert world.status("ada")["volume"]["sizeGb"] == 5


async def lose_volume(world: World) -> str:
    lost = world.volume("ada").id
    await world.admin("DELETE", f"volumes/{lost}")
    return lost


@in_a_world
async def test_on_loss_restore_goes_on_from_the_newest_snapshot(world: World) -> None:
    await running(world)
    await world.admin("POST", f"volumes/{world.volume('ada').id}/snapshot")
    await world.settle(30)
    newest = (await world.admin("POST", f"volumes/{world.volume('ada').id}/snapshot"))["id"]
    await world.settle(30)
    lost = await lose_volume(world)
    await world.until(lambda: world.volumes("ada") and world.volume("ada").id != lost, 900, about=["ada"])
    await world.until_phase("ada", "Running", 600)
    assert world.sent("create_volume")[-1]["snapshot_id"] == newest


@pytest.mark.parametrize("on_loss", ["Restore", "Fail", "Recreate"])
@in_a_world
async def test_on_loss_puts_nothing_empty_in_place_of_data(world: World, on_loss: str) -> None:
    await running(world, volume={"onLoss": on_loss})
    lost = await lose_volume(world)
    await world.settle(1800)
    assert world.volumes("ada") == []
    assert world.condition("ada", "Stalled")[:2] == ("True", "VolumeLost")
    assert lost in world.condition("ada", "Stalled")[2]


@in_a_world
async def test_on_loss_fail_waits_even_with_a_snapshot(world: World) -> None:
    await running(world, volume={"onLoss": "Fail"})
    await world.admin("POST", f"volumes/{world.volume('ada').id}/snapshot")
    await world.settle(30)
    await lose_volume(world)
    await world.settle(1800)
    assert world.volumes("ada") == []


@in_a_world
async def test_allow_data_loss_lets_recreate_begin_anew_once_and_for_the_named_volume_alone(world: World) -> None:
    await running(world, volume={"onLoss": "Recreate"})
    lost = await lose_volume(world)
    await world.annotate("ada", allow_data_loss="vol_another")
    await world.settle(900)
    assert world.volumes("ada") == []
    await world.annotate("ada", allow_data_loss=lost)
    await world.until_phase("ada", "Running", 900)
    await world.until(lambda: states(world) == ["started"], 900, about=["ada"])
    again = await lose_volume(world)
    assert again != lost
    await world.settle(1800)
    assert world.volumes("ada") == [], "the annotation names the volume before"


@pytest.mark.parametrize("shared", [False, True], ids=["app of its own", "shared app"])
@in_a_world
async def test_restore_from_a_snapshot_of_its_own_takes_that_one_and_not_the_newest(
    world: World, *, shared: bool
) -> None:
    fly = {"appStrategy": "Shared", "app": "everyone"} if shared else {}
    await world.by_hand("POST", "/v1/apps", {"name": "everyone", "org_slug": "personal"})
    await running(world, deletionPolicy="Retain", fly=fly)
    before = world.volume("ada")
    old = (await world.admin("POST", f"volumes/{before.id}/snapshot"))["id"]
    await world.settle(60)
    await world.admin("POST", f"volumes/{before.id}/snapshot")
    await world.delete("ada")
    await world.until_gone("ada")
    await world.settle(5)
    await world.by_hand("DELETE", f"/v1/apps/{before.app.name}/volumes/{before.id}")
    await running(world, volume={"restoreFrom": {"snapshot": old}}, fly=fly)
    assert world.sent("create_volume")[-1]["snapshot_id"] == old
    assert world.machine("ada").config.metadata["roost_restored"] == old


@in_a_world
async def test_restore_from_never_replaces_a_volume_in_use(world: World) -> None:
    await running(world, deletionPolicy="Retain")
    snapshot = (await world.admin("POST", f"volumes/{world.volume('ada').id}/snapshot"))["id"]
    await world.settle(5)
    before = world.volume("ada").id
    calls = world.mark()
    await world.edit("ada", volume={"restoreFrom": {"snapshot": snapshot}})
    await world.until_phase("ada", "Degraded")
    assert world.calls(since=calls) == []
    assert world.volume("ada").id == before
    assert world.condition("ada", "VolumeReady")[1] == "RestoreRefused"


@in_a_world
async def test_restore_from_an_agent_takes_a_snapshot_of_its_volume(world: World) -> None:
    await running(world, "bob", volume={"sizeGb": 3})
    await running(world, volume={"restoreFrom": {"agent": "bob"}})
    made = world.sent("create_volume")[-1]
    assert "create_snapshot" in world.calls("bob")
    assert made["snapshot_id"]
    assert made["size_gb"] == 3
    assert world.machine("ada").config.metadata["roost_restored"] == "agent/bob"
    await world.settle(60)
    volume = world.volume("ada").id
    world.store.wipe_status("ada")
    await world.restart()
    await world.until_phase("ada", "Running")
    assert world.volume("ada").id == volume
    assert world.calls().count("create_volume") == 2


@in_a_world
async def test_restore_from_a_stranger_s_snapshot_is_refused(world: World) -> None:
    await running(world, "bob")
    snapshot = (await world.admin("POST", f"volumes/{world.volume('bob').id}/snapshot"))["id"]
    await world.apply("ada", volume={"restoreFrom": {"snapshot": snapshot}})
    await world.until_phase("ada", "Failed", 300)
    assert world.volumes("ada") == []
    assert world.condition("ada", "Stalled")[1] == "RestoreRefused"


# --- What ends in the agent's configuration --------------------------------------------------------------------------


@in_a_world
async def test_runtime_env_and_files_reach_the_agent_without_a_new_machine(world: World) -> None:
    world.secret("keys", api="sesame")
    await running(world)
    calls = await change(
        world,
        runtime={
            "version": "2",
            "command": ["python3", "-m", "agent"],
            "readiness": {"httpGet": {"path": "/ok", "port": 8000}, "initialDeadlineSeconds": 600},
        },
        env=[
            {"name": "MODE", "value": "calm"},
            {"name": "KEY", "valueFrom": {"name": "keys", "key": "api"}},
        ],
        files=[
            {"path": "etc/a", "mode": "0640", "content": "text"},
            {"path": "etc/b", "contentFrom": {"name": "keys", "key": "api"}},
        ],
    )
    told = await bundle(world)
    assert calls == []
    assert world.inmates["ada"].boots == 1
    assert told.runtime.version == "2"
    assert told.runtime.command == ["python3", "-m", "agent"]
    assert (told.runtime.readiness.http_get.path, told.runtime.readiness.http_get.port) == ("/ok", 8000)
    assert told.runtime.readiness.initial_deadline_seconds == 600
    assert told.env == {"MODE": "calm"}
    assert told.secret_env.keys() == {"KEY", "OPENCLAW_GATEWAY_TOKEN"}
    assert told.secret_env["KEY"] == "sesame"
    assert [(f.path, f.mode, f.content) for f in told.files] == [("etc/a", "0640", "text"), ("etc/b", "0600", "sesame")]
    assert told.revision == world.status("ada")["bundle"]["applied"]
    assert "sesame" not in repr(world.body("ada")) + repr(world.ledger())


@in_a_world
async def test_openclaw_with_little_memory_is_warned_of_once(world: World) -> None:
    await running(world, runtime={"kind": "OpenClaw", "version": "2026.9.6"})
    await running(world, "bob", runtime={"kind": "OpenClaw", "version": "2026.9.6"}, machine={"memoryMb": 2048})
    await world.settle(600)
    warned = [e for e in world.store.events if e["reason"] == "LowMemory"]
    assert [e["regarding"]["name"] for e in warned] == ["ada"]
    assert "spec.machine.memoryMb 1024" in warned[0]["note"]


@in_a_world
async def test_the_first_deadline_of_readiness_is_how_long_a_boot_may_take(world: World) -> None:
    await world.apply(
        "ada",
        runtime={
            "kind": "Command",
            "command": ["run"],
            "readiness": {"httpGet": {"port": 80}, "initialDeadlineSeconds": 1500},
        },
    )
    world.inmates["ada"].boot_seconds = 1400
    await world.until_phase("ada", "Running", 2000)
    assert "restart_machine" not in world.calls("ada")


# --- heartbeat, recovery -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("interval", "missed"), [(10, 2), (30, 4), (60, 10)])
@in_a_world
async def test_heartbeat_says_when_an_agent_counts_as_silent(world: World, interval: int, missed: int) -> None:
    await running(world, heartbeat={"intervalSeconds": interval, "missedBeforeUnhealthy": missed})
    await world.settle(400)
    before = world.inmates["ada"].heard
    await world.settle(interval * 10)
    assert abs(world.inmates["ada"].heard - before - 10) <= 1
    world.inmates["ada"].silent, began = True, world.loop.time()
    await world.until(lambda: world.condition("ada", "AgentHealthy")[0] == "False", interval * missed * 2 + 60)
    assert interval * (missed - 1) <= world.loop.time() - began <= interval * missed + 5
    assert world.inmates["ada"].boots == 1
    await world.until(lambda: world.inmates["ada"].boots == 2, 3 * interval + 30)


@in_a_world
async def test_recovery_none_tells_and_does_nothing(world: World) -> None:
    await running(world, recovery={"onUnhealthy": "None"})
    await world.settle(60)
    before = world.mark()
    world.inmates["ada"].silent = True
    await world.settle(1800)
    assert world.calls("ada", before) == []
    assert world.condition("ada", "Ready")[:2] == ("False", "AgentSilent")


@in_a_world
async def test_max_per_hour_bounds_restarts_and_then_it_waits_for_a_person(world: World) -> None:
    await running(world, recovery={"maxPerHour": 2}, heartbeat={"intervalSeconds": 10})
    await world.settle(60)
    world.inmates["ada"].silent = True
    began = world.mark()
    await world.settle(3000)
    assert world.calls("ada", began).count("restart_machine") == 2
    assert world.condition("ada", "Stalled")[:2] == ("True", "RecoveryExhausted")
    world.inmates["ada"].silent = False
    await world.until_phase("ada", "Running", 600)


@in_a_world
async def test_recovery_relocate_moves_it_when_restarts_have_not_helped(world: World) -> None:
    await running(world, recovery={"onUnhealthy": "Relocate"}, heartbeat={"intervalSeconds": 10})
    await world.settle(60)
    first, before = world.volume("ada").id, world.mark()
    world.inmates["ada"].silent = True
    await world.until(lambda: len(world.volumes("ada")) == 2, 3600, about=["ada"])
    world.inmates["ada"].silent = False
    await world.until_phase("ada", "Running", 900)
    assert world.calls("ada", before).count("restart_machine") == 2
    assert world.sent("create_volume")[-1]["source_volume_id"] == first
    assert world.machine("ada").volume is not None
    assert world.machine("ada").volume.id != first


# --- idle ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "call", "state"), [("Stop", "stop_machine", "stopped"), ("Suspend", "suspend_machine", "suspended")]
)
@in_a_world
async def test_idle_rests_after_its_time_as_its_action_says(world: World, action: str, call: str, state: str) -> None:
    await running(world, idle={"action": action, "afterSeconds": 300, "allowDeaf": True})
    await idle(world, active_at=world.clock.now())
    before, began = world.mark(), world.loop.time()
    await world.until(lambda: call in world.calls("ada", before), 900, about=["ada"])
    assert 290 < world.loop.time() - began < 340
    await world.until(lambda: states(world) == [state])
    await world.settle(60)
    assert world.condition("ada", "Ready")[:2] == ("True", "Idle")
    await world.settle(1800)
    assert states(world) == [state]
    assert world.inmates["ada"].boots == 1


@pytest.mark.parametrize("sign", [{"sessions": 1}, {"connections": 1}, {"sessions": None, "connections": None}])
@in_a_world
async def test_an_agent_that_is_busy_or_does_not_say_is_not_put_to_rest(world: World, sign: dict[str, Any]) -> None:
    await running(world, idle=IDLE | {"allowDeaf": True})
    await idle(world, **sign)
    await world.settle(1800)
    assert states(world) == ["started"]


@in_a_world
async def test_without_allow_deaf_only_one_that_traffic_can_wake_rests(world: World) -> None:
    await running(world, "bob", idle=IDLE, machine=OPEN)
    await running(world, "cyd", idle=IDLE | {"allowDeaf": True})
    await idle(world, "bob")
    await idle(world, "cyd")
    await world.settle(600)
    assert (states(world, "bob"), states(world, "cyd")) == (["stopped"], ["stopped"])
    assert [s["autostart"] for s in world.config("bob")["services"]] == [True]


@pytest.mark.parametrize("by", ["annotation", "edit"])
@in_a_world
async def test_a_resting_agent_is_woken(world: World, by: str) -> None:
    await running(world, idle=IDLE | {"allowDeaf": True})
    await idle(world)
    await world.until(lambda: states(world) == ["stopped"], 600, about=["ada"])
    await world.settle(30)
    woken = world.loop.time()
    if by == "annotation":
        await world.annotate("ada", wake="1")
    else:
        await world.edit("ada", identity={"displayName": "Ada"})
    await world.until(lambda: states(world) == ["started"], 30, about=["ada"])
    await world.settle(55 - (world.loop.time() - woken))
    assert states(world) == ["started"], "not put back to rest at once"
    await world.until(lambda: states(world) == ["stopped"], 300, about=["ada"])


@in_a_world
async def test_a_resting_agent_is_up_before_its_next_run(world: World) -> None:
    await running(world, idle=IDLE | {"allowDeaf": True})
    run = world.clock.now() + 1800
    await idle(world, next_run_at=run)
    await world.until(lambda: states(world) == ["stopped"], 600, about=["ada"])
    world.inmates["ada"].next_run_at = run + 86400
    await world.until(lambda: states(world) == ["started"], 2000, about=["ada"])
    assert 60 < run - world.clock.now() <= 121


@in_a_world
async def test_a_resting_agent_that_traffic_wakes_stays_up_for_a_while(world: World) -> None:
    await running(world, idle=IDLE | {"afterSeconds": 300}, machine=OPEN)
    await idle(world)
    await world.until(lambda: states(world) == ["stopped"], 900, about=["ada"])
    await world.settle(60)
    machine = world.machine("ada")
    await world.by_hand("POST", f"/v1/apps/{machine.app.name}/machines/{machine.id}/start")  # as the edge proxy does
    await world.settle(250)
    assert states(world) == ["started"]
    await world.until(lambda: states(world) == ["stopped"], 300, about=["ada"])


# --- annotations ---------------------------------------------------------------------------------------------------


@in_a_world
async def test_reconcile_at_asks_for_a_look_now(world: World) -> None:
    world.sim.world.hosts.replace("iad", [])
    await world.apply("ada")
    await world.until_phase("ada", "Failed")
    await world.settle(30)
    world.sim.world.hosts.replace("iad", [Size()])
    await world.annotate("ada", reconcile_at="now")
    await world.until_phase("ada", "Running", 280)
    assert world.status("ada")["lastHandledReconcileAt"] == "now"


@in_a_world
async def test_forget_lets_go_of_what_can_not_be_deleted(world: World) -> None:
    await running(world)
    machine, volume = world.machine("ada"), world.volume("ada")
    await kill_host(world, volume.host)
    await world.settle(120)
    await world.delete("ada")
    await world.settle(1800)
    assert world.condition("ada", "DestroyStuck")[0] == "True"
    await world.annotate("ada", forget=f"{machine.id}, {volume.id}")
    await world.until_gone("ada", 60)
    assert [m.id for m in world.machines("ada")] == [machine.id], "nothing of it was touched"
    assert "delete_app" not in world.calls()
