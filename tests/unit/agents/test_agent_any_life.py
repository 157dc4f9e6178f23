"""Any life: people, Fly and faults do what they like in any order. The rules hold; when all is quiet, it converges."""

from dataclasses import replace

import world
from explore import fates
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from world import Fate, Life, act, delete, edit, judge_settled, rest, shared, sweep, think

from roost.agents.view import Act, Settled, Step, Stuck
from roost.api.agent import Phase
from roost.api.conditions import Reason

LIES = (Fate.EMPTY, Fate.OLD)
CHANGES = st.sampled_from(
    (
        {"machine": {"memory_mb": 2048}},
        {"machine": {"cpus": 2}},
        {"machine": {"image": "other"}},
        {"volume": {"size_gb": 3}},
        {"identity": {"token_epoch": 1}},
        {"desired_state": "Stopped"},
        {"desired_state": "Running"},
        {"revoked": True},
        {"revoked": False},
        {"paused": True},
        {"paused": False},
        {"deletion_policy": "Retain"},
        {"restarted_at": "now"},
        {"desired_state": "Suspended"},
        {"machine": {"public": "Gateway", "autostart": True}},
        {"machine": {"public": "None", "autostart": False}},
        {"volume": {"snapshot_retention_days": 9}},
        {"placement": {"relocate": "Never"}},
        {"placement": {"relocate": "OnFailure"}},
        {"recovery": {"on_unhealthy": "Relocate"}},
        {"idle": {"after_seconds": 60, "action": "Stop", "allow_deaf": True}},
        {"idle": {"after_seconds": 0, "action": "None"}},
    )
)


class AnyLife(RuleBasedStateMachine):
    """`lied` since the operator began: two lists that lie in a row are more than the planner claims to bear."""

    life: Life
    lied = False
    lost = False

    @initialize(kind=st.sampled_from(("own app", "shared app", "retained")))
    def begins(self, kind: str) -> None:
        kept = {"deletion_policy": "Retain"} if kind == "retained" else {}
        self.life = shared() if kind == "shared app" else world.agent(**kept)
        self.life = replace(self.life, regions=("iad", "ord"), says={"active_sessions": 0, "connections": 0})

    # The operator.

    @precondition(lambda self: not self.life.released)
    @rule(data=st.data(), told=st.booleans())
    def goes_on(self, data: st.DataObject, told: bool) -> None:
        """One step, with any fate."""
        step = think(self.life)
        if not isinstance(step, Act):
            self.life = rest(self.life, step, told=told)
            return
        fate = data.draw(st.sampled_from((Fate.OK, *fates(step.action))))
        if fate in LIES:
            fate = Fate.OK if self.lied else fate
            self.lied = True
        self._calls(step, fate)

    @precondition(lambda self: not self.life.released)
    @rule(steps=st.integers(1, 12))
    def goes_well_for_a_while(self, steps: int) -> None:
        for _ in range(steps):
            if not self.life.released:
                self._on(think(self.life))

    @precondition(lambda self: not self.life.released)
    @rule(keep_status=st.booleans())
    def operator_crashes(self, keep_status: bool) -> None:
        """Only the status knows that a volume was lost: it is not lost as well."""
        self.life = world.crash(self.life, keep_status=keep_status or self.lost)
        self.lied = False

    @rule(full=st.booleans(), lag=st.sampled_from((0.0, world.LAG)))
    def machines_are_listed(self, full: bool, lag: float) -> None:
        self.life = sweep(self.life, full=full, lag=lag)

    @rule(seconds=st.sampled_from((0.5, 10.0, 95.0, 400.0)))
    def time_passes(self, seconds: float) -> None:
        now = self.life.now + seconds
        self.life = replace(self.life, now=now, cloud=self.life.cloud.at(now), turn=())

    # People.

    @precondition(lambda self: not self.life.released and not self.life.declared.deleting)
    @rule(changes=CHANGES)
    def spec_is_edited(self, changes: dict) -> None:
        self.life = edit(self.life, **changes)

    @precondition(lambda self: not self.life.released and not self.life.declared.deleting)
    @rule()
    def it_is_deleted(self) -> None:
        self.life = delete(self.life)

    @precondition(lambda self: self.life.released)
    @rule(uid=st.uuids(version=4))
    def it_is_applied_again(self, uid: object) -> None:
        self.life = world.apply_again(self.life, str(uid), self.life.declared.spec)
        self.lied = self.lost = False

    # Fly.

    @rule()
    def its_machine_stops(self) -> None:
        self.life = world.machine_stops(self.life)

    @rule()
    def its_machine_is_destroyed(self) -> None:
        self.life = world.machine_destroyed(self.life)

    @rule()
    def its_machine_is_forgotten(self) -> None:
        self.life = world.machine_forgotten(self.life)

    @precondition(lambda self: "volume" in self.life.status and not self.life.declared.deleting)
    @rule()
    def its_host_is_lost(self) -> None:
        self.lost = bool(self.life.cloud.my_volumes(world.names_of("ada").volume)) or self.lost
        self.life = world.volume_lost(self.life)

    @rule()
    def its_host_goes_out_of_reach(self) -> None:
        self.life = world.host_dies(self.life)

    @rule()
    def its_host_comes_back(self) -> None:
        self.life = world.host_returns(self.life)

    @rule()
    def a_snapshot_is_taken(self) -> None:
        self.life = world.snapshot(self.life)

    # The agent.

    @rule()
    def it_falls_silent(self) -> None:
        if self.life.hushed_at is None:
            self.life = replace(self.life, hushed_at=self.life.now)

    @rule()
    def it_is_heard_again(self) -> None:
        self.life = replace(self.life, hushed_at=None)

    def teardown(self) -> None:
        """When nothing fails any more, it comes to where it is declared to be, and stays there without a call."""
        if not hasattr(self, "life"):
            return
        if self.life.declared.spec.paused and not self.life.declared.deleting:
            self.life = edit(self.life, paused=False)
        self.life = replace(world.host_returns(self.life), hushed_at=None)
        for _ in range(600):
            if self.life.released:
                return
            step = think(self.life)
            if isinstance(step, Settled) and self._stays_settled(step):
                return
            if self.lost and isinstance(step, Stuck) and step.reason is Reason.VOLUME_LOST:
                return
            self._on(step)
        raise AssertionError(f"it does not converge: {think(self.life)}")

    # How.

    def _on(self, step: Step) -> None:
        if isinstance(step, Act):
            self._calls(step, Fate.OK)
        else:
            before = self.life.now
            self.life = rest(self.life, step)
            if self.life.now - before >= world.REFRESH:
                self.life = sweep(self.life)

    def _calls(self, step: Act, fate: Fate) -> None:
        self.life, ended = act(self.life, step, fate)
        if ended is not None and not self.life.released:
            self.life = rest(self.life, ended)

    def _stays_settled(self, step: Settled) -> bool:
        for _ in range(3):
            self.life = sweep(rest(self.life, step))
            if think(self.life) != step:
                return False
        if step.phase is not Phase.TERMINATING:
            judge_settled(self.life, step)
        return True


AnyLife.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestAnyLife = AnyLife.TestCase
