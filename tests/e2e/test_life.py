"""An Agent's whole life on the real stack: sleep, visitors, lost storage, dead hosts, adoption, and every way to leave.

A real API server, the simulated Fly with real processes as machines, the operator and the supervisor; asked from
outside. The operator looks at Fly more often than usual, and believes in absence sooner, since these lists never lag.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
import yaml

from roost.local import binaries
from roost.local.stack import Stack
from roost.local.story import Machine, Stage

LOOK_SECONDS = 2.0
SERVER = """
import json, os, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
with open("starts.txt", "a") as starts:
    print("start", file=starts)
with open(os.environ["ROOST_ACTIVITY_FILE"], "w") as activity:
    json.dump({"activeSessions": 0}, activity)
class Hello(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"hello from port %d" % self.server.server_port)
servers = [ThreadingHTTPServer((os.environ["ROOST_BIND_ADDRESS"], port), Hello) for port in (18789, 18790, 18791)]
for server in servers:
    threading.Thread(target=server.serve_forever).start()
"""
SLEEPER = "sleeper"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A stack of its own, with an operator that looks often, and an agent that has nothing to do from the beginning."""
    with Stack(tmp_path_factory.mktemp("roost-life"), say=print) as stack:
        settings = yaml.safe_load(stack.layout.settings.read_text())
        settings["fly"] |= dict.fromkeys(("refreshSeconds", "volumeRefreshSeconds", "absenceSeconds"), LOOK_SECONDS)
        stack.layout.settings.write_text(yaml.safe_dump(settings))
        stack.restart("operator")
        stage = Stage(stack, binaries.find(say=print).kubectl, print)
        idle = {"afterSeconds": 60, "action": "Stop"}
        apply(stage, server(SLEEPER, machine={"public": "Gateway", "autostart": True}, idle=idle))
        yield stage


# --- First what starts the operator anew, and with it the minute of those who have nothing to do ----------------------


def test_lost_volumes_come_back_from_their_snapshots_and_never_as_empty_ones(stage: Stage) -> None:
    for name, on_loss in (("careful", "Restore"), ("bare", "Restore"), ("reckless", "Recreate")):
        apply(stage, agent(name, volume={"onLoss": on_loss}))
    lost = {}
    for name in ("careful", "bare", "reckless"):
        stage.ready("agents", name)
        lost[name] = volume_of(stage, name)
    stage.fly("POST", f"/_sim/volumes/{lost['careful']}/snapshot")
    # The operator is away: that a volume is gone which it made itself a moment ago, it would not believe for a while.
    stage.stack.stop("operator")
    for volume in lost.values():
        stage.fly("DELETE", f"/_sim/volumes/{volume}")
    stage.stack.restart("operator")

    for name, remedy in (
        ("bare", f"set volume.onLoss: Recreate and roost.dev/allow-data-loss={lost['bare']}"),
        ("reckless", f"annotate the Agent: roost.dev/allow-data-loss={lost['reckless']}"),
    ):
        said = stalled(stage, name, "VolumeLost")
        assert said == condition(stage, name, "VolumeReady")["message"]
        assert f"volume {lost[name]} is gone at Fly and its data with it" in said
        assert remedy in said
    stage.kubectl("annotate", "agents", "reckless", f"roost.dev/allow-data-loss={lost['reckless']}")
    for name, starts in (("careful", ["start", "start"]), ("reckless", ["start"])):
        stage.until("it should be on another volume", lambda name=name: volume_of(stage, name) != lost[name])
        stage.ready("agents", name)
        assert stage.machine(name).wrote("starts.txt") == starts


def test_an_agent_forced_away_and_applied_again_is_the_same_one_and_is_not_restarted(stage: Stage) -> None:
    body = agent("stray")
    before, old = applied(stage, body), stage.get("agents", "stray")
    stage.stack.stop("operator")
    stage.kubectl("delete", "agents", "stray", "--wait=false")
    stage.patch("agents", "stray", {"metadata": {"finalizers": None}})
    stage.until("it should be forced away", lambda: not stage.get("agents", "stray"))
    apply(stage, body)
    stage.stack.restart("operator")
    found = stage.ready("agents", "stray")
    assert found["metadata"]["uid"] != old["metadata"]["uid"]
    for block, key in (("app", "incarnation"), ("machine", "id"), ("volume", "id")):
        assert found["status"][block][key] == old["status"][block][key]
    # Ready needs a heartbeat, and the process that sends it only has the token that it was started with.
    after = stage.machine("stray")
    assert (after.id, after.pid, after.wrote("starts.txt")) == (before.id, before.pid, ["start"])
    stamped = stage.fly("GET", f"/v1/apps/{after.app}/machines/{after.id}/metadata")
    assert stamped["roost_uid"] == found["metadata"]["uid"]


def test_an_agent_whose_status_is_wiped_is_found_again_as_it_runs(stage: Stage) -> None:
    before, volume = applied(stage, agent("amnesiac")), volume_of(stage, "amnesiac")
    stage.kubectl("patch", "agents", "amnesiac", "--subresource=status", "--type=merge", "-p", '{"status": null}')
    stage.ready("agents", "amnesiac", 10)
    after = stage.machine("amnesiac")
    assert (after.id, after.pid, volume_of(stage, "amnesiac")) == (before.id, before.pid, volume)
    assert after.wrote("starts.txt") == ["start"]


# --- Sleep and visitors ------------------------------------------------------------------------------------------


def test_a_suspended_agent_goes_on_as_the_same_process_and_is_heard_soon(stage: Stage) -> None:
    before = applied(stage, agent("dozer"))
    assert before.pid is not None
    stage.patch("agents", "dozer", {"spec": {"desiredState": "Suspended"}})
    assert stage.ready("agents", "dozer")["status"]["phase"] == "Suspended"
    assert stage.machine("dozer").state == "suspended"
    assert psutil.Process(before.pid).status() == psutil.STATUS_STOPPED
    stage.patch("agents", "dozer", {"spec": {"desiredState": "Running"}})
    # Ready needs a heartbeat from after the waking.
    assert stage.ready("agents", "dozer", 15)["status"]["phase"] == "Running"
    after = stage.machine("dozer")
    assert (after.pid, after.wrote("starts.txt")) == (before.pid, ["start"])


def test_visitors_reach_the_ports_that_are_declared_and_none_of_a_revoked_agent(stage: Stage) -> None:
    app = applied(stage, server("door")).app
    assert (visit(stage, app), visit(stage, app, 18790)) == (503, 503)
    stage.patch("agents", "door", {"spec": {"machine": {"public": "Gateway"}}})
    stage.ready("agents", "door")
    assert (visit(stage, app), visit(stage, app, 18790)) == (200, 503)
    stage.patch("agents", "door", {"spec": {"machine": {"public": "All"}}})
    stage.ready("agents", "door")
    assert [visit(stage, app, port) for port in (443, 18790, 18791)] == [200, 200, 200]
    stage.kubectl("annotate", "agents", "door", "roost.dev/revoked=true")
    stage.until("it should be revoked", lambda: stage.get("agents", "door")["status"]["phase"] == "Revoked")
    machine = stage.machine("door")
    assert machine.state == "stopped"
    assert "services" not in stage.fly("GET", f"/v1/apps/{app}/machines/{machine.id}")["config"]
    assert visit(stage, app) == 503


# --- Storage -----------------------------------------------------------------------------------------------------


def test_a_machine_destroyed_behind_our_back_is_made_again_on_its_volume(stage: Stage) -> None:
    before = applied(stage, agent("phoenix"))
    stage.fly("DELETE", f"/_sim/machines/{before.id}")
    stage.until("it should be told", lambda: stage.get("agents", "phoenix")["status"]["machine"]["id"] != before.id)
    stage.ready("agents", "phoenix")
    after = stage.machine("phoenix")
    assert (after.id != before.id, after.volume) == (True, before.volume)
    assert after.wrote("starts.txt") == ["start", "start"]


def test_an_agent_on_a_dead_host_is_told_and_is_well_when_the_host_returns(stage: Stage) -> None:
    stage.fly("POST", "/_sim/hosts", {"region": "ams", "hosts": [{}]})
    before = applied(stage, agent("marooned", placement={"regions": ["ams"], "relocate": "OnFailure"}))
    stage.fly("POST", "/_sim/hosts/ams-1", {"status": "dead"})
    stage.until("it should be told", lambda: condition(stage, "marooned", "Ready").get("reason") == "HostLost")
    assert condition(stage, "marooned", "VolumeReady")["status"] == "False"
    stage.fly("POST", "/_sim/hosts/ams-1", {"status": "ok"})
    stage.until("it should start again", lambda: before.wrote("starts.txt") == ["start", "start"])
    stage.ready("agents", "marooned")
    assert stage.machine("marooned").id == before.id


def test_an_agent_whose_host_is_full_goes_on_elsewhere_with_its_files(stage: Stage) -> None:
    stage.fly("POST", "/_sim/hosts", {"region": "lhr", "hosts": [{}, {}]})
    before = applied(stage, agent("mover", placement={"regions": ["lhr"]}))
    old = volume_of(stage, "mover")
    stage.patch("agents", "mover", {"spec": {"desiredState": "Stopped"}})
    stage.ready("agents", "mover")
    host = next(h["id"] for h in stage.fly("GET", "/_sim/hosts") if before.id in h["machines"])
    stage.fly("POST", f"/_sim/hosts/{host}", {"slots": 0})
    stage.patch("agents", "mover", {"spec": {"desiredState": "Running"}})
    status = stage.ready("agents", "mover")["status"]
    assert status["volume"]["id"] != old
    assert status["previousVolume"]["id"] == old
    assert stage.machine("mover").wrote("starts.txt") == ["start", "start"]


def test_a_new_agent_begins_with_the_files_of_another(stage: Stage) -> None:
    applied(stage, agent("teacher"))
    pupil = applied(stage, agent("pupil", volume={"restoreFrom": {"agent": "teacher"}}))
    assert pupil.wrote("starts.txt") == ["start", "start"]
    assert stage.machine("teacher").wrote("starts.txt") == ["start"]
    assert stage.get("agents", "pupil")["status"]["volume"]["restoredFrom"] == "agent/teacher"


# --- Leaving -----------------------------------------------------------------------------------------------------


def test_a_person_lets_go_of_what_fly_does_not_delete(stage: Stage) -> None:
    app, volume = applied(stage, agent("stuck")).app, volume_of(stage, "stuck")
    stage.fly("POST", "/_sim/faults", {"op": "delete_volume", "status": 500, "match": {"volume": volume}})
    stage.kubectl("delete", "agents", "stuck", "--wait=false")
    stage.until("it should say on what it hangs", lambda: last_error(stage, "stuck") == "delete_volume")
    stage.kubectl("annotate", "agents", "stuck", f"roost.dev/forget={volume}")
    stage.until("it should be gone", lambda: not stage.get("agents", "stuck"))
    stage.fly("DELETE", "/_sim/faults")
    assert left(stage, app) == [volume, app]


def test_a_namespace_goes_with_its_agents_and_all_they_have_at_fly(stage: Stage) -> None:
    stage.kubectl("create", "namespace", "short")
    body = agent("inmate")
    body["metadata"]["namespace"] = "short"
    apply(stage, body)
    stage.kubectl("-n", "short", "wait", "--for=condition=Ready", "agents/inmate", "--timeout=30s")
    app = json.loads(stage.kubectl("-n", "short", "get", "agents", "inmate", "-o", "json"))["status"]["app"]["name"]
    assert len(left(stage, app)) == 3
    stage.kubectl("delete", "namespace", "short", "--timeout=60s")
    assert left(stage, app) == []


def test_members_of_a_fleet_have_what_its_template_says_of_their_lives(stage: Stage) -> None:
    template = agent(
        "",
        machine={"public": "Gateway", "autostart": True, "metadata": {"team": "support"}},
        volume={"autoExtend": {"atPercent": 80, "byGb": 1, "limitGb": 5}, "snapshotRetentionDays": 7},
        idle={"afterSeconds": 3600, "action": "Suspend"},
        recovery={"onUnhealthy": "Relocate", "maxPerHour": 2},
        placement={"regions": ["iad", "ord"], "relocate": "OnFailure"},
    )["spec"]
    fleet = {"apiVersion": "roost.dev/v1alpha1", "kind": "Fleet", "metadata": {"name": "crew"}}
    apply(stage, fleet | {"spec": {"replicas": 1, "template": {"spec": template}}})
    stage.ready("fleets", "crew")
    stage.kubectl("scale", "fleets/crew", "--replicas=2")
    stage.ready("fleets", "crew")
    apps = []
    for name in ("crew-0", "crew-1"):
        machine = stage.machine(name)
        apps.append(machine.app)
        config = stage.fly("GET", f"/v1/apps/{machine.app}/machines/{machine.id}")["config"]
        assert config["metadata"]["team"] == "support"
        assert config["mounts"][0]["size_gb_limit"] == 5
        assert config["services"][0]["autostart"] is True
    stage.kubectl("delete", "fleets", "crew", "--timeout=60s")
    stage.until("no member should be left", lambda: not [a for app in apps for a in left(stage, app)])


# --- Rest for idleness, last: by now the sleeper's minute is over -------------------------------------------------


def test_an_agent_with_nothing_to_do_rests_and_a_visitor_wakes_it(stage: Stage) -> None:
    rested = stage.until(
        "it should rest", lambda: (c := condition(stage, SLEEPER, "Ready")).get("reason") == "Idle" and c, 90
    )
    before = stage.machine(SLEEPER)
    assert (rested["status"], before.state, before.pid) == ("True", "stopped", None)
    assert visit(stage, before.app) == 200
    stage.until("it should be awake", lambda: condition(stage, SLEEPER, "Ready").get("reason") == "Running")
    heard = metric(stage, "roost_heartbeats_total")
    stage.until("all should have been heard twice", lambda: metric(stage, "roost_heartbeats_total") > heard + 40)
    after = stage.machine(SLEEPER)
    assert (after.id, after.state, after.wrote("starts.txt")) == (before.id, "started", ["start", "start"])
    assert "idle" not in stage.get("agents", SLEEPER)["status"]


# --- Small pieces ------------------------------------------------------------------------------------------------


def agent(name: str, **spec: Any) -> dict[str, Any]:
    runtime = {"kind": "Command", "command": ["sh", "-c", "echo start >> starts.txt; exec sleep 1000"]}
    return {
        "apiVersion": "roost.dev/v1alpha1",
        "kind": "Agent",
        "metadata": {"name": name},
        "spec": {"runtime": runtime, "heartbeat": {"intervalSeconds": 5}} | spec,
    }


def server(name: str, **spec: Any) -> dict[str, Any]:
    """An agent that answers on all three ports that can be public, and says that it has no sessions."""
    readiness = {"httpGet": {"path": "/", "port": 18789}}
    command = [sys.executable, "-c", SERVER]
    return agent(name, runtime={"kind": "Command", "command": command, "readiness": readiness}, **spec)


def apply(stage: Stage, body: dict[str, Any]) -> None:
    stage.kubectl("apply", "-f", "-", given=body)


def applied(stage: Stage, body: dict[str, Any]) -> Machine:
    apply(stage, body)
    stage.ready("agents", body["metadata"]["name"])
    return stage.machine(body["metadata"]["name"])


def volume_of(stage: Stage, name: str) -> str:
    return str(stage.get("agents", name)["status"]["volume"]["id"])


def condition(stage: Stage, name: str, kind: str) -> dict[str, Any]:
    found = stage.get("agents", name).get("status", {}).get("conditions", [])
    return next((c for c in found if c["type"] == kind), {})


def stalled(stage: Stage, name: str, reason: str) -> str:
    """Waits until it can't go on for this reason; answers what it says."""
    said = stage.until(
        f"{name} should be stalled",
        lambda: (c := condition(stage, name, "Stalled")).get("status") == "True" and c["reason"] == reason and c,
    )
    return str(said["message"])


def last_error(stage: Stage, name: str) -> str:
    return str(stage.get("agents", name).get("status", {}).get("destroy", {}).get("lastError", {}).get("op"))


def left(stage: Stage, app: str) -> list[str]:
    """What there is of an app at Fly: machines and volumes by id, then its name."""
    state = stage.fly("GET", "/_sim/state")
    machines = [m["id"] for m in state["machines"] if m["app"] == app and m["state"] != "destroyed"]
    volumes = [v["id"] for v in state["volumes"] if v["app_name"] == app and "destroy" not in v["state"]]
    return machines + volumes + [a["name"] for a in state["apps"] if a["name"] == app]


def visit(stage: Stage, app: str, port: int = 443) -> int:
    """The status of a visitor's request to a public port of an app."""
    headers = {"Host": f"{app}.fly.dev:{port}"}
    return httpx.get(stage.stack.edge_url, headers=headers, timeout=30, trust_env=False).status_code


def metric(stage: Stage, name: str) -> float:
    text = httpx.get(f"{stage.stack.metrics_url}/metrics", trust_env=False).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))
