"""The verifier on small hand-made logs: what a good run gives, and that each kind of bad run is caught."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from roost.local.evidence import read_audit, read_ledger
from roost.local.verify_figures import OPERATOR, Report, Window, main, verify

T0 = 1_795_000_000.0
READY = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
FINALIZER = {"metadata": {"finalizers": ["roost.dev/machine"]}}
RELEASED: dict[str, Any] = {"metadata": {"finalizers": []}}


class Story:
    """A run, told line by line; `at` is in seconds after its beginning."""

    def __init__(self, folder: Path) -> None:
        self.ledger_path, self.audit_path = folder / "ledger.jsonl", folder / "audit.jsonl"
        self.ledger: list[dict[str, Any]] = []
        self.audit: list[dict[str, Any]] = []

    def write(
        self,
        at: float,
        verb: str,
        body: dict[str, Any] | None = None,
        *,
        name: str = "ada",
        user: str = OPERATOR,
        sub: str = "",
        code: int = 200,
        resource: str = "agents",
        group: str = "roost.dev",
        query: str = "",
        stage: str = "ResponseComplete",
    ) -> None:
        self.audit.append(
            {
                "stage": stage,
                "verb": verb,
                "requestURI": f"/apis/{group}/v1alpha1/namespaces/team-a/{resource}/{name}?{query}",
                "user": {"username": user},
                "objectRef": {
                    "resource": resource,
                    "namespace": "team-a",
                    "apiGroup": group,
                    **({"name": name} if name else {}),
                    **({"subresource": sub} if sub else {}),
                },
                "responseStatus": {"code": code},
                "requestObject": body or {},
                "requestReceivedTimestamp": _stamp(at),
                "stageTimestamp": _stamp(at + 0.002),
            }
        )

    def call(self, at: float, op: str, *, status: int = 200, agent: str = "roost/0.1.0", **what: Any) -> None:
        line = {
            "kind": "call",
            "at": T0 + at,
            "op": op,
            "seconds": 0.005,
            "status": status,
            "agent": agent,
            "fault": None,
            "effect": None if op.startswith(("get_", "list_", "org_")) or status >= 400 else "changed",
        }
        self.ledger.append(line | {"app": None, "machine": None, "volume": None} | what)

    def event(self, at: float, event: str, **what: Any) -> None:
        line = {"kind": "event", "at": T0 + at, "event": event, "app": None, "machine": None, "volume": None}
        self.ledger.append(line | {"detail": {}} | what)

    def ready(
        self, name: str = "ada", app: str = "app-ada", at: float = 0.0, spec: dict[str, Any] | None = None
    ) -> None:
        """An Agent is created and becomes ready, as cheaply as it can: finalizer, four calls, one status write."""
        machine, volume = f"m-{app}", f"vol_{app}"
        self.write(at, "create", {"spec": spec or {}}, name=name, user="admin", code=201)
        self.write(at + 0.1, "patch", FINALIZER, name=name)
        self.make("app", at + 0.2, app)
        self.make("volume", at + 0.3, app, volume=volume)
        self.make("machine", at + 0.4, app, machine=machine, volume=volume, name=name)
        self.call(at + 0.5, "get_machine", app=app, machine=machine)
        self.write(at + 1.0, "patch", READY, name=name, sub="status")

    def make(self, kind: str, at: float, app: str, *, name: str = "ada", **what: Any) -> None:
        metadata = {"metadata": {"roost_namespace": "team-a", "roost_name": name}} if kind == "machine" else {}
        self.call(at, f"create_{kind}", app=app, **what, **metadata)
        self.event(at + 0.01, f"{kind}_created", app=app, **what)

    def destroy(self, kind: str, at: float, app: str, **what: Any) -> None:
        self.call(at, f"delete_{kind}", app=app, **what)
        self.event(at + 0.01, f"{kind}_destroyed", app=app, **what)

    def delete(self, at: float, app: str = "app-ada", name: str = "ada") -> None:
        """The Agent is deleted, everything goes in order, the finalizer is released."""
        self.write(at, "delete", name=name, user="admin")
        self.destroy("machine", at + 0.1, app, machine=f"m-{app}", volume=f"vol_{app}")
        self.destroy("volume", at + 0.2, app, volume=f"vol_{app}")
        self.destroy("app", at + 0.3, app)
        self.write(at + 0.4, "patch", RELEASED, name=name)

    def save(self) -> None:
        self.ledger_path.write_text("".join(json.dumps(line) + "\n" for line in self.ledger))
        self.audit_path.write_text("".join(json.dumps(line) + "\n" for line in self.audit))

    def report(self, idle: Window | None = None) -> Report:
        self.save()
        return verify(read_ledger(self.ledger_path), read_audit([self.audit_path]), idle=idle)


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(T0 + at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path)


def test_a_cheap_life_has_the_figures_it_has(story: Story) -> None:
    story.ready()
    story.delete(10)
    report = story.report()
    (ada,) = report.agents
    assert (ada.k8s_writes_converge, ada.k8s_writes_life, ada.fly_calls_converge) == (2, 3, 4)
    assert ada.apply_to_ready_s == pytest.approx(1.002)
    assert report.sound
    assert report.orphans == report.doubles == report.order_violations == []


def test_the_max_and_the_median_are_over_agents(story: Story) -> None:
    for number, name in enumerate(["ada", "bob", "eve"]):
        story.ready(name, f"app-{name}", at=number * 0.01)
    story.write(0.5, "patch", {"status": {"phase": "Provisioning"}}, name="eve", sub="status")
    spread = story.report().figures["k8s_writes_converge"]
    assert (spread.agents, spread.median, spread.max, spread.total) == (3, 2, 3, 7)


def test_what_is_not_a_successful_write_of_the_operator_is_not_counted(story: Story) -> None:
    story.ready()
    story.write(0.6, "patch", {"status": {}}, sub="status", code=409)
    story.write(0.6, "patch", {"status": {}}, sub="status", query="dryRun=All")
    story.write(0.6, "patch", {"status": {}}, sub="status", stage="RequestReceived")
    story.write(0.6, "create", name="ada.0123456789abcdef", resource="events", group="events.k8s.io", code=201)
    story.write(0.6, "update", name="roost", resource="leases", group="coordination.k8s.io")
    report = story.report()
    assert report.agents[0].k8s_writes_converge == 2
    assert report.agents[0].k8s_events_converge == 1
    assert report.refused_writes == 1


def test_a_server_side_apply_that_creates_begins_a_life(story: Story) -> None:
    story.ready()
    story.audit[0] |= {"verb": "patch"}
    assert story.report().agents[0].k8s_writes_converge == 2


def test_org_lists_and_other_peoples_calls_are_apart(story: Story) -> None:
    story.ready()
    story.call(0.5, "org_machines", org="personal")
    story.call(0.5, "get_machine", agent="curl/8", app="app-ada", machine="m-app-ada")
    report = story.report()
    assert report.agents[0].fly_calls_converge == 4
    assert report.org_calls == 1


def test_an_app_is_known_by_the_status_before_it_has_a_machine(story: Story) -> None:
    story.write(0, "create", {}, user="admin", code=201)
    story.write(0.1, "patch", {"status": {"app": {"name": "app-ada"}}}, sub="status")
    story.make("app", 0.2, "app-ada")
    story.write(0.3, "patch", READY, sub="status")
    report = story.report()
    assert report.agents[0].fly_calls_converge == 1
    assert report.orphans == []


@pytest.mark.parametrize(
    "disturb",
    [
        lambda story: story.write(0.5, "patch", {"spec": {"paused": True}}, user="admin"),
        lambda story: story.call(0.5, "get_machine", status=500, app="app-ada", fault={"id": "f1", "where": "before"}),
    ],
    ids=["somebody wrote", "Fly failed"],
)
def test_a_disturbed_agent_does_not_count_for_convergence(story: Story, disturb: Callable[[Story], None]) -> None:
    story.ready()
    disturb(story)
    report = story.report()
    assert report.agents[0].disturbed
    assert "k8s_writes_converge" not in report.figures


def test_a_life_with_more_in_it_is_not_a_whole_life(story: Story) -> None:
    story.ready()
    story.write(5, "patch", {"spec": {"paused": True}}, user="admin")
    story.delete(10)
    report = story.report()
    assert report.agents[0].k8s_writes_life is None
    assert report.agents[0].k8s_writes_converge == 2


def test_a_rollout_is_a_change_of_the_life_although_the_operator_makes_it(story: Story) -> None:
    story.ready()
    story.write(5, "patch", {"spec": {"machine": {"memoryMb": 2048}}})
    story.delete(10)
    assert story.report().agents[0].k8s_writes_life is None


@pytest.mark.parametrize(("uses", "writes"), [(True, None), (False, 3)])
def test_a_rotated_secret_is_a_change_of_the_life_of_those_who_use_it(
    story: Story, uses: bool, writes: int | None
) -> None:
    source = {"valueFrom": {"name": "key", "key": "k"}} if uses else {"value": "plain"}
    story.ready(spec={"env": [{"name": "KEY"} | source]})
    story.write(5, "patch", name="key", resource="secrets", group="", user="admin")
    story.delete(10)
    assert story.report().agents[0].k8s_writes_life == writes


def test_idle_is_counted_inside_its_window_only(story: Story) -> None:
    story.ready()
    for at in (4, 5, 6, 16):
        story.write(at, "patch", {"status": {"nextAction": str(at)}}, sub="status")
        story.call(at, "get_machine", app="app-ada", machine="m-app-ada")
        story.call(at, "org_machines")
        story.write(at, "update", name="roost", resource="leases", group="coordination.k8s.io")
    report = story.report(Window(T0 + 5, T0 + 15))
    (ada,) = report.agents
    assert (ada.idle_writes, ada.idle_fly_calls) == (2, 2)
    assert (report.idle_org_calls, report.idle_other_writes, report.idle_seconds) == (2, 2, 10)


def test_a_name_used_twice_is_two_lives(story: Story) -> None:
    story.ready()
    story.delete(10)
    story.ready(app="app-ada", at=20)
    story.delete(30)
    report = story.report()
    assert [agent.k8s_writes_life for agent in report.agents] == [3, 3]
    assert report.sound


@pytest.mark.parametrize("left", ["machine", "volume", "app"])
def test_what_is_left_of_a_deleted_agent_is_an_orphan(story: Story, left: str) -> None:
    story.ready()
    story.delete(10)
    story.ledger = [line for line in story.ledger if line.get("event") != f"{left}_destroyed"]
    report = story.report()
    assert [sentence.split()[0] for sentence in report.orphans] == [left]
    assert not report.sound


def test_what_a_living_agent_has_is_no_orphan(story: Story) -> None:
    story.ready()
    assert story.report().orphans == []


def test_a_retained_volume_and_app_are_no_orphans_but_a_machine_is(story: Story) -> None:
    story.ready(spec={"deletionPolicy": "Retain"})
    story.delete(10)
    kept = {"volume_destroyed", "app_destroyed"}
    story.ledger = [line for line in story.ledger if line.get("event") not in kept]
    assert story.report().sound
    story.ledger = [line for line in story.ledger if line.get("event") != "machine_destroyed"]
    report = story.report()
    assert len(report.orphans) == 1
    assert "machine m-app-ada" in report.orphans[0]
    assert len(report.order_violations) == 1


def test_an_app_that_nobody_claims_is_an_orphan_unless_somebody_else_made_it(story: Story) -> None:
    story.ready()
    story.make("app", 2, "app-lost")
    story.call(2, "create_app", app="shared", agent="python-httpx/0.28")
    story.event(2.01, "app_created", app="shared")
    assert story.report().orphans == ["app app-lost is left and belongs to no Agent on record"]


def test_two_machines_at_once_are_caught(story: Story) -> None:
    story.ready()
    story.make("machine", 2, "app-ada", machine="m-2", volume="vol_app-ada")
    story.destroy("machine", 3, "app-ada", machine="m-app-ada")
    report = story.report()
    assert len(report.doubles) == 1
    assert "machine m-2" in report.doubles[0]


def test_a_machine_after_the_other_is_no_double(story: Story) -> None:
    story.ready()
    story.destroy("machine", 2, "app-ada", machine="m-app-ada")
    story.make("machine", 3, "app-ada", machine="m-2", volume="vol_app-ada")
    assert story.report().doubles == []


def test_two_mounted_volumes_are_caught_and_a_twin_is_told_apart(story: Story) -> None:
    story.ready()
    story.make("volume", 2, "app-ada", volume="vol_twin")
    report = story.report()
    assert report.doubles == []
    assert report.volume_twins == 1
    story.event(2.5, "machine_updated", app="app-ada", machine="m-app-ada", volume="vol_twin")
    report = story.report()
    assert len(report.doubles) == 1
    assert report.volume_twins == 0


def test_of_two_volumes_with_one_number_one_that_was_restored_is_a_double(story: Story) -> None:
    names = {"vol_app-ada": "roost_0070f422604fd7e2aa76", "vol_2": "roost_0070f422604fd7e2r825_1"}
    names["vol_3"] = "roost_0070f422604fd7e2r500_2"
    story.ready()
    for machine, volume in (("m-2", "vol_2"), ("m-3", "vol_3")):
        story.make("volume", 2, "app-ada", volume=volume)
        story.destroy("machine", 2, "app-ada", machine="m-app-ada")
        story.make("machine", 3, "app-ada", machine=machine, volume=volume)
    for line in story.ledger:
        if line.get("event") == "volume_created":
            line["detail"] = {"name": names[line["volume"]]}
    [told] = [double for double in story.report().doubles if "volume" in double]
    assert "vol_app-ada" in told
    assert "vol_2" in told


def test_a_machine_made_and_lost_by_a_long_one_is_still_a_double_with_it(story: Story) -> None:
    story.ready()
    for number in (2, 3):
        story.make("machine", number, "app-ada", machine=f"m-{number}")
        story.destroy("machine", number + 0.5, "app-ada", machine=f"m-{number}")
    assert len(story.report().doubles) == 2


@pytest.mark.parametrize(("first", "second"), [("volume", "machine"), ("app", "volume"), ("app", "machine")])
def test_destroying_in_the_wrong_order_is_caught(story: Story, first: str, second: str) -> None:
    """`first` is asked for before `second` is gone."""
    story.ready()
    story.delete(10)
    for line in story.ledger:
        if line.get("op") == f"delete_{first}":
            line["at"] = T0 + 10.05
    report = story.report()
    assert any(first in sentence and second in sentence for sentence in report.order_violations), report
    assert not report.sound


def test_an_app_whose_deletion_takes_everything_with_it_is_caught(story: Story) -> None:
    """Fly's cascade destroys machine and volume first; it is the request that came too early."""
    story.ready()
    story.write(10, "delete", user="admin")
    story.call(10.1, "delete_app", app="app-ada")
    story.event(10.11, "machine_destroyed", app="app-ada", machine="m-app-ada")
    story.event(10.12, "volume_destroyed", app="app-ada", volume="vol_app-ada")
    story.event(10.13, "app_destroyed", app="app-ada")
    story.write(10.2, "patch", RELEASED)
    assert len(story.report().order_violations) == 2


@pytest.mark.parametrize("late", ["machine", "volume", "app"])
def test_releasing_the_resource_too_early_is_caught(story: Story, late: str) -> None:
    story.ready()
    story.delete(10)
    for line in story.ledger:
        if line.get("event") == f"{late}_destroyed":
            line["at"] = T0 + 12
    assert any("was gone while" in sentence and late in sentence for sentence in story.report().order_violations)


def test_a_deletion_without_a_finalizer_ends_the_life_at_once(story: Story) -> None:
    """An Agent that was deleted before anybody saw it, and one that went with its namespace."""
    story.write(0, "create", {}, user="admin", code=201)
    story.write(1, "delete", user="admin")
    story.write(2, "create", {}, name="bob", user="admin", code=201)
    story.write(3, "deletecollection", name="", user="system:serviceaccount:kube-system:namespace-controller")
    story.make("machine", 0.5, "app-ada", machine="m1", name="ada")
    story.make("machine", 2.5, "app-bob", machine="m2", name="bob")
    assert len(story.report().orphans) == 2


def test_the_command_prints_and_judges(story: Story, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story.ready()
    story.delete(10)
    story.save()
    marker = tmp_path / "idle"
    marker.write_text(f"{T0 + 2} {T0 + 9}\n")
    arguments = ["--ledger", str(story.ledger_path), "--audit", str(story.audit_path), "--idle-file", str(marker)]
    assert main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["figures"]["idle_writes"]["max"] == 0
    assert main(arguments) == 0
    assert "k8s_writes_converge" in capsys.readouterr().out
    story.make("machine", 20, "app-ada", machine="m-late")
    story.save()
    assert main(arguments) == 1
    assert "machine m-late of app app-ada is left" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["no Agent", "not JSON", "no ledger line", "no audit entry", "no file", "idle"])
def test_logs_that_prove_nothing_are_refused(story: Story, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    story.ready()
    more: list[str] = []
    match damage:
        case "no Agent":
            story.audit.clear()
        case "no ledger line":
            story.ledger.append({"kind": "call"})
        case "no audit entry":
            story.audit.append({"stage": "ResponseComplete"})
        case "idle":
            more = ["--idle", "5", "4"]
    story.save()
    if damage == "not JSON":
        story.ledger_path.write_text("nonsense\n" + story.ledger_path.read_text())
    if damage == "no file":
        story.ledger_path.unlink()
    assert main(["--ledger", str(story.ledger_path), "--audit", str(story.audit_path), *more]) == 2
    assert capsys.readouterr().err


def test_an_unfinished_last_line_is_forgiven(story: Story) -> None:
    story.ready()
    story.save()
    with story.audit_path.open("a") as file:
        file.write('{"stage": "Resp')
    assert len(verify(read_ledger(story.ledger_path), read_audit([story.audit_path])).agents) == 1


def test_convergence_ends_with_the_first_ready_and_with_nothing_less(story: Story) -> None:
    story.ready()
    conditions = [{"type": "Ready", "status": "False"}, {"type": "VolumeReady", "status": "True"}]
    not_yet = {"status": {"conditions": conditions}}
    story.write(0.7, "patch", not_yet, sub="status")
    story.write(5, "patch", not_yet, sub="status")
    story.write(6, "patch", READY, sub="status")
    (ada,) = story.report().agents
    assert ada.k8s_writes_converge == 3
    assert ada.apply_to_ready_s == pytest.approx(1.002)


def test_a_double_is_told_by_the_two_that_lived_together(story: Story) -> None:
    story.ready()
    story.destroy("machine", 2, "app-ada", machine="m-app-ada")
    story.make("machine", 3, "app-ada", machine="m-2")
    story.make("machine", 4, "app-ada", machine="m-3")
    assert story.report().doubles == [
        "machine m-2 of app app-ada and machine m-3 of app app-ada of Agent team-a/ada lived at the same time"
    ]


A, B = "roost/0.1.0 (a)", "roost/0.1.0 (b)"
ADA = {"app": "app-ada", "machine": "m-app-ada"}


def test_two_changes_of_one_agent_at_the_same_time_are_an_overlap_whoever_sent_them(story: Story) -> None:
    story.ready()
    story.call(5, "update_machine", agent=A, seconds=2.0, **ADA)
    story.call(6, "extend_volume", agent=B, app="app-ada", volume="vol_app-ada")
    story.call(6.5, "stop_machine", agent=A, **ADA)
    report = story.report()
    assert report.overlaps == [
        f"extend_volume by {B} began 1.000 s before update_machine by {A} was done, both of Agent team-a/ada",
        f"stop_machine by {A} began 0.500 s before update_machine by {A} was done, both of Agent team-a/ada",
    ]
    assert not report.sound


def test_changes_one_after_the_other_refused_ones_looks_and_other_agents_overlap_nothing(story: Story) -> None:
    story.ready()
    story.ready("bob", "app-bob", at=0.01)
    story.call(5, "update_machine", agent=A, seconds=2.0, **ADA)
    story.call(6, "update_machine", agent=B, status=409, **ADA)
    story.call(6, "stop_machine", agent=B, app="app-bob", machine="m-app-bob")
    story.call(6, "get_machine", agent=B, **ADA)
    story.call(6, "stop_machine", agent="curl/8", **ADA)
    story.call(7.1, "stop_machine", agent=B, **ADA)
    report = story.report()
    assert report.overlaps == []
    assert report.sound


def test_agents_that_share_an_app_overlap_each_for_itself(story: Story) -> None:
    for name in ("ada", "bob"):
        story.write(0, "create", name=name, user="admin", code=201)
        story.make("machine", 1, "shared", machine=f"m-{name}", volume=f"vol-{name}", name=name)
    ada, bob = ({"app": "shared", "machine": f"m-{name}"} for name in ("ada", "bob"))
    story.call(5, "update_machine", seconds=2.0, **ada)
    story.call(6, "update_machine", seconds=2.0, **bob)
    assert story.report().overlaps == []
    story.call(6.5, "stop_machine", **ada)
    assert len(story.report().overlaps) == 1


def test_the_late_create_of_a_volume_that_nothing_mounts_is_a_twin_and_no_overlap(story: Story) -> None:
    story.ready()
    story.call(0.25, "create_volume", agent=A, seconds=5.0, app="app-ada", volume="vol_late")
    assert story.report().overlaps == []
    story.call(0.26, "create_volume", agent=A, seconds=5.0, app="app-ada", volume="vol_app-ada")
    assert story.report().overlaps != [], "the volume that is used had a rival"


def test_the_command_tells_overlaps(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    story.ready()
    story.call(5, "update_machine", seconds=2.0, **ADA)
    story.call(6, "stop_machine", **ADA)
    story.save()
    assert main(["--ledger", str(story.ledger_path), "--audit", str(story.audit_path)]) == 1
    assert "overlaps                    1" in capsys.readouterr().out


def test_a_finalizer_whose_writer_was_killed_may_be_stored_all_the_same(story: Story) -> None:
    story.ready()
    story.audit[1]["responseStatus"]["code"] = 504
    story.delete(10)
    assert story.report().sound


def test_an_agent_that_a_later_write_does_not_find_is_gone(story: Story) -> None:
    story.ready()
    story.delete(10)
    story.audit[-1]["responseStatus"]["code"] = 504
    story.write(11, "patch", RELEASED, code=404)
    del story.ledger[-2:]  # its app is left
    assert story.report().orphans == ["app app-ada is left although Agent team-a/ada is gone"]


def test_an_answer_that_is_held_back_after_the_effect_does_not_make_a_change_longer(story: Story) -> None:
    story.ready()
    story.ledger.append({"kind": "held", "at": T0 + 5.1, "op": "update_machine", "request_id": "r1"})
    story.call(5, "update_machine", agent=A, seconds=9.0, request_id="r1", **ADA)
    story.call(5.2, "stop_machine", agent=B, **ADA)
    assert story.report().overlaps == []
    story.call(5.05, "stop_machine", agent=B, **ADA)
    assert len(story.report().overlaps) == 1
