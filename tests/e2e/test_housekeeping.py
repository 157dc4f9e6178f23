"""`roost orphans`, `cleanup` and `release` as a person or a script runs them: real API server, simulated Fly.

Everything at Fly is put there as an operator would have left it, or as somebody else would; no operator runs.
"""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from roost.agents.names import Names, derive
from roost.local import binaries
from roost.local.recipes import AGENT_IMAGE
from roost.local.stack import Stack, manifests_dir
from roost.local.story import Stage

ROOT, OWNER = b"i" * 32, "owner1"


@dataclass
class House:
    """One control plane and Fly, and the hands that put things there."""

    stage: Stage
    cluster: str

    def names(self, name: str) -> Names:
        return derive(ROOT, OWNER, "default", name)

    def agent(self, name: str, **status: Any) -> None:
        """An Agent with our finalizer and this status."""
        body = {
            "apiVersion": "roost.dev/v1alpha1",
            "kind": "Agent",
            "metadata": {
                "name": name,
                "namespace": "default",
                "finalizers": ["roost.dev/machine", "example.com/theirs"],
            },
            "spec": {"runtime": {"kind": "Command", "command": ["true"]}},
        }
        self.stage.kubectl("apply", "-f", "-", given=body)
        patch = json.dumps({"status": status})
        self.stage.kubectl("patch", "agents", name, "--subresource=status", "--type=merge", "-p", patch)

    def app(self, name: str) -> str:
        self.stage.fly("POST", "/v1/apps", {"name": name, "org_slug": "personal"})
        return name

    def volume(self, app: str, name: str) -> str:
        made = self.stage.fly("POST", f"/v1/apps/{app}/volumes", {"name": name, "region": "iad", "size_gb": 1})
        return str(made["id"])

    def machine(self, app: str, of: str, volume: str | None, *, running: bool = False, **says: str) -> str:
        """A machine of the Agent `of`; `says` changes its metadata."""
        metadata = {
            "roost_owner": OWNER,
            "roost_cluster": self.cluster,
            "roost_namespace": "default",
            "roost_name": of,
            "roost_uid": "a-uid",
        } | says
        env = {"AGENT_DID": "did:key:z1", "AGENTSHIELD_API_URL": "http://127.0.0.1:1", "AS_HEARTBEAT_TOKEN": "none"}
        mounts = [{"volume": volume, "path": "/data"}] if volume else []
        body = {
            "name": self.names(of).machine(volume or ""),
            "region": "iad",
            "skip_launch": not running,
            "config": {"image": AGENT_IMAGE, "metadata": metadata, "mounts": mounts, "env": env},
        }
        made = self.stage.fly("POST", f"/v1/apps/{app}/machines", body)
        if running:
            self.stage.fly("GET", f"/v1/apps/{app}/machines/{made['id']}/wait?state=started&timeout=30")
        return str(made["id"])

    def everything(self, of: str, *, running: bool = False, **says: str) -> dict[str, str]:
        """All that one Agent has."""
        app = self.app(self.names(of).app)
        volume = self.volume(app, self.names(of).volume)
        return {"app": app, "volume": volume, "machine": self.machine(app, of, volume, running=running, **says)}

    def there(self) -> set[str]:
        """Apps by name, machines and volumes by id."""
        state = self.stage.fly("GET", "/_sim/state")
        machines = {m["id"] for m in state["machines"] if m["state"] not in ("destroying", "destroyed")}
        volumes = {v["id"] for v in state["volumes"] if "destroy" not in v["state"]}
        return machines | volumes | {a["name"] for a in state["apps"] if not a["deleting"]}

    def roost(self, *arguments: str, typed: str = "", kubeconfig: str = "") -> subprocess.CompletedProcess[str]:
        layout = self.stage.stack.layout
        where = ["--config", str(layout.settings), "--kubeconfig", kubeconfig or str(layout.kubeconfig)]
        return subprocess.run(
            [sys.executable, "-m", "roost.cli", *arguments, *where],
            input=typed,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def told(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        done = self.roost(*arguments, "--json")
        return done.returncode, json.loads(done.stdout)


def verdicts(answer: dict[str, Any]) -> dict[str, str]:
    return {f["id"]: f["verdict"] for f in answer["atFly"]}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A stack of its own, without an operator."""
    with Stack(tmp_path_factory.mktemp("roost-house"), operator=False, say=print) as stack:
        yield Stage(stack, binaries.find(say=print).kubectl, print)


@pytest.fixture
def house(stage: Stage) -> House:
    """An empty Fly, no Agents, and roots that we know."""
    for app in stage.fly("GET", "/_sim/state")["apps"]:
        stage.fly("DELETE", f"/v1/apps/{app['name']}?force=true")
    left = json.loads(stage.kubectl("get", "agents,fleets", "-A", "-o", "json"))["items"]
    for thing in left:
        stage.patch(thing["kind"], thing["metadata"]["name"], {"metadata": {"finalizers": None}})
        stage.kubectl("delete", thing["kind"], thing["metadata"]["name"], "--ignore-not-found")
    values = {"ownerId": OWNER.encode(), "identity": ROOT, "token": b"t" * 32, "fingerprint": b"f" * 32}
    roots = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "roost-roots", "namespace": "roost-system"},
        "data": {key: base64.b64encode(value).decode() for key, value in values.items()},
    }
    stage.kubectl("apply", "-f", "-", given=roots)
    return House(stage, stage.get("namespace", "kube-system")["metadata"]["uid"])


def test_cleanup_lists_exactly_the_orphans_and_removes_exactly_them(house: House) -> None:
    # given: Agents that live, two of them with nothing wrong and one whose machine somebody has destroyed
    ada, eve = house.everything("ada", running=True), house.everything("eve")
    for name, its in (("ada", ada), ("eve", eve)):
        ids = {"machine": {"id": its["machine"]}, "volume": {"id": its["volume"]}}
        house.agent(name, app={"name": its["app"], "org": "personal"}, **ids)
    house.stage.fly("DELETE", f"/v1/apps/{eve['app']}/machines/{eve['machine']}?force=true")
    # and: what Agents have left that are gone, whole, in part, and in an app that is shared
    gone = house.everything("gone", running=True)
    empty = house.app(house.names("empty").app)
    lone = house.volume(house.app(house.names("lone").app), house.names("lone").volume_of(2))
    shared = house.app("team-app")
    guest = house.machine(shared, "guest", guests := house.volume(shared, house.names("guest").volume))
    orphans = {*gone.values(), empty, house.names("lone").app, lone, guest, guests}
    # and: what somebody keeps on purpose, and what is not ours
    kept = house.everything("kept")
    house.stage.fly("POST", f"/v1/apps/{kept['app']}/secrets/ROOST_RETAINED", {"value": "true"})
    house.machine(house.app("web"), "gone", None, roost_owner="somebody")
    house.volume("web", "data")
    house.app("roost-gone-0123456789ab")
    house.machine(shared, "web", None, roost_owner="")
    house.stage.until("eve's machine should be gone", lambda: eve["machine"] not in house.there())
    before = house.there()

    # then: with the usual grace all of them wait, as they were made a moment ago
    code, answer = house.told("orphans")
    assert code == 1
    assert {i for i, verdict in verdicts(answer).items() if verdict in ("orphan", "waits")} == orphans
    assert {i for i, verdict in verdicts(answer).items() if verdict == "retained"} == set(kept.values())
    assert [(f["agent"], f["kind"], f["id"]) for f in answer["missing"]] == [("eve", "machine", eve["machine"])]

    # and: without grace, a dry run lists exactly the orphans and changes nothing
    code, answer = house.told("cleanup", "--dry-run", "--grace", "0")
    assert (code, answer["applied"]) == (0, False)
    assert {i for i, verdict in verdicts(answer).items() if verdict == "orphan"} == orphans
    assert house.roost("cleanup", "--grace", "0").returncode == 0
    assert house.there() == before

    # when: somebody types something else, nothing happens
    declined = house.roost("cleanup", "--apply", "--grace", "0", typed="yes\n")
    assert declined.returncode == 2
    assert declined.stdout.endswith(f"Type {len(orphans)} or personal to go on: Nothing was deleted.\n")
    assert house.roost("cleanup", "--apply", "--grace", "0", "--yes-i-mean", "another").returncode == 2
    assert house.there() == before

    # when: it is confirmed, exactly the orphans are gone
    done = house.roost("cleanup", "--apply", "--grace", "0", typed=f"{len(orphans)}\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Done: {len(orphans)} deleted." in done.stdout
    assert house.there() == before - orphans
    assert house.told("cleanup", "--apply", "--grace", "0", "--yes-i-mean", "personal")[1]["counts"] == {}


def test_what_another_cluster_with_our_owner_id_may_have_is_left_alone(house: House) -> None:
    theirs = house.everything("theirs", roost_cluster="another-cluster")
    unproven = house.volume(house.app(house.names("lone").app), house.names("lone").volume)
    ours = house.everything("ours")
    dated = house.volume(dated_app := house.app(house.names("dated").app), house.names("dated").volume)
    machine = house.machine(dated_app, "dated", None)
    house.stage.fly("DELETE", f"/v1/apps/{dated_app}/machines/{machine}?force=true")
    house.stage.until("the machine should be gone", lambda: machine not in house.there())
    before = house.there()
    code, answer = house.told("cleanup", "--apply", "--grace", "0", "--yes-i-mean", "personal")
    assert code == 0
    told = verdicts(answer)
    assert {told[i] for i in theirs.values()} == {"other cluster"}
    assert (told[unproven], told[house.names("lone").app]) == ("unproven", "unproven")
    assert house.there() == before - {*ours.values(), dated, dated_app}


def test_where_something_can_not_be_read_it_says_so_and_deletes_nothing(house: House) -> None:
    gone = house.everything("gone")
    # a region that Fly can't read
    house.stage.fly("POST", "/_sim/lists", {"error_regions": ["ams"]})
    code, answer = house.told("orphans", "--grace", "0")
    assert (code, set(verdicts(answer).values())) == (2, {"unknown"})
    assert "Fly can't read its machines in ams" in answer["problems"][0]
    refused = house.roost("cleanup", "--apply", "--grace", "0", "--yes-i-mean", "personal")
    assert refused.returncode == 2
    assert "Nothing was deleted: what could not be read might say that a thing is still needed." in refused.stdout
    house.stage.fly("POST", "/_sim/lists", {"error_regions": []})
    # a list that fails
    house.stage.fly("POST", "/_sim/faults", {"op": "org_volumes", "status": 500})
    code, answer = house.told("orphans", "--grace", "0")
    assert (code, set(verdicts(answer).values())) == (2, {"unknown"})
    assert "volumes can't be listed" in answer["problems"][0]
    house.stage.fly("DELETE", "/_sim/faults")
    # Kubernetes, for somebody who may not list Agents
    house.stage.kubectl("create", "serviceaccount", "looker")
    token = house.stage.kubectl("create", "token", "looker").strip()
    config = yaml.safe_load(house.stage.stack.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    theirs = house.stage.stack.kubeconfig.with_name("looker.kubeconfig")
    theirs.write_text(yaml.safe_dump(config))
    blind = house.roost("orphans", kubeconfig=str(theirs))
    assert blind.returncode == 2
    assert "the cluster can't be read, so all at Fly is unknown" in blind.stdout
    assert house.roost("cleanup", "--apply", "--yes-i-mean", "personal", kubeconfig=str(theirs)).returncode == 2
    # the roots: without them nothing is ours, and none are made
    house.stage.kubectl("-n", "roost-system", "delete", "secret", "roost-roots")
    assert "Secret roost-system/roost-roots is missing" in house.roost("orphans").stdout
    assert not house.stage.get("-n=roost-system", "secrets/roost-roots")
    assert house.there() == set(gone.values())


def test_release_lets_resources_go_and_machines_stay(house: House) -> None:
    # given: an operator's Deployment, an Agent that runs, one that is being deleted, and a Fleet
    deployment = next(
        o
        for o in yaml.safe_load_all(house.stage.kubectl("kustomize", str(manifests_dir())))
        if o["kind"] == "Deployment"
    )
    ada, bob = house.everything("ada", running=True), house.everything("bob")
    for name, its in (("ada", ada), ("bob", bob)):
        house.agent(name, app={"name": its["app"]}, machine={"id": its["machine"]}, volume={"id": its["volume"]})
    house.stage.kubectl("delete", "agents", "bob", "--wait=false")
    fleet = {
        "apiVersion": "roost.dev/v1alpha1",
        "kind": "Fleet",
        "metadata": {"name": "team", "namespace": "default", "finalizers": ["roost.dev/members"]},
        "spec": {"replicas": 0, "template": {"spec": {"runtime": {"kind": "Command", "command": ["true"]}}}},
    }
    house.stage.kubectl("apply", "-f", "-", given=fleet)
    before = house.there()

    # then: it refuses while nobody can tell that no operator runs, and while one does
    silent = house.roost("release", "--all", "--yes")
    assert (silent.returncode, "--operator-is-stopped" in silent.stdout) == (2, True)
    house.stage.kubectl("apply", "-f", "-", given=deployment)
    running = house.roost("release", "--all", "--yes", "--operator-is-stopped")
    assert running.returncode == 2
    command = "kubectl -n roost-system scale deployment/roost --replicas=0"
    assert command in running.stdout
    assert house.stage.get("agents", "ada")["metadata"]["finalizers"] == ["roost.dev/machine", "example.com/theirs"]

    # when: it is scaled down as it says, only the namespace that is named is touched, and only when it is confirmed
    house.stage.kubectl(*command.split()[1:])
    assert house.roost("release", "--namespace", "elsewhere").stdout == "Nothing has a finalizer of Roost.\n"
    assert house.roost("release", "--all", typed="no\n").returncode == 2
    done = house.roost("release", "--namespace", "default", typed="3\n")
    assert done.returncode == 0, done.stdout
    assert "3 of 3 released." in done.stdout
    assert all(i in done.stdout for i in (*ada.values(), *bob.values()))

    # then: others' finalizers stay, ours are gone, and so is nothing at Fly
    assert house.stage.get("agents", "ada")["metadata"]["finalizers"] == ["example.com/theirs"]
    house.stage.kubectl("delete", "fleets", "team", "--timeout=10s")
    assert house.there() == before
