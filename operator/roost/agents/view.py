"""Everything the planner may know about one Agent, and the steps it may answer with. Pure values, no behaviour.

Times are seconds of one monotonic clock. `None` always means *unknown*, never *absent*: absence is said by an empty
tuple or `present=False` together with the time of the look that found nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from roost.agents.names import Names
from roost.api.agent import AgentSpec, Phase
from roost.api.conditions import Reason
from roost.secrets.state import Resolution

FINALIZER = "roost.dev/machine"
UP = frozenset({"created", "creating", "started", "starting", "restarting", "updating", "replacing", "migrating"})
"""A machine in one of these states runs, or will without our doing."""
WAIT_SECONDS = 60
"""The longest wait that Fly's wait call takes."""
UNTOLD_ORG = "another org"
"""Whose app it is when Fly refuses to tell (403): another org's, or ours and the token is at fault."""
NO_TOKEN = -1
"""In place of an epoch: no token of the Agent is stored at Fly."""
SLOW_SECONDS = 300.0
"""How often something that only a person can heal is looked at."""


@dataclass(frozen=True, slots=True)
class Declared:
    """The Agent as the API server holds it."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    finalizers: tuple[str, ...]
    deleting: bool
    annotations: Mapping[str, str]
    labels: Mapping[str, str]
    spec: AgentSpec

    @property
    def revoked(self) -> bool:
        return self.spec.revoked or self.annotations.get("roost.dev/revoked", "false").lower() not in ("false", "")

    @property
    def paused(self) -> bool:
        """Nothing is to be changed; deletion and the kill switch are stronger."""
        return self.spec.paused and not self.deleting and not self.revoked

    @property
    def silence_window(self) -> float:
        """Seconds without a heartbeat after which the agent counts as silent."""
        h = self.spec.heartbeat
        return float(h.interval_seconds * h.missed_before_unhealthy)

    @property
    def wants_running(self) -> bool:
        return self.spec.desired_state == "Running" and not self.revoked


@dataclass(frozen=True, slots=True)
class IdleRest:
    """A rest for idleness, and what ends it: an edit, a new value of roost.dev/wake, or the time to wake."""

    since: float
    wake_at: float | None
    generation: int
    wake: str


@dataclass(frozen=True, slots=True)
class Attempts:
    """What was tried within the hour since `since` to bring a silent agent back."""

    count: int
    since: float
    reason: str


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the status remembers: whose app it is and which ids are in it; what was pinned is in `Place`."""

    app: str | None = None
    incarnation: str | None = None
    machine_id: str | None = None
    machine_version: str | None = None
    image: str = ""
    volume_id: str | None = None
    volume_name: str = ""
    volume_region: str | None = None
    volume_size_gb: int | None = None
    previous_id: str | None = None
    previous_expires_at: float = 0.0
    restored_from: str | None = None
    idle: IdleRest | None = None
    attempts: Attempts | None = None


@dataclass(frozen=True, slots=True)
class MachineSight:
    """A machine as it was last seen; `suspect` when a list has hinted since that this is no longer so."""

    id: str
    name: str
    state: str
    version: str
    region: str
    private_ip: str
    image: str
    metadata: Mapping[str, str]
    updated_at: str
    seen_at: float
    volume_id: str | None = None
    exit_note: str = ""
    host_ok: bool = True
    suspect: bool = False
    image_digest: str = ""
    config: str | None = None
    """The fingerprint of its config as Fly tells it; None when only a list of the org has shown it."""
    up_since: float | None = None
    """When it was first seen up again after a rest."""
    unreachable_since: float | None = None
    refused: bool = False
    """Its host is out of reach, and since it was last looked at Fly has refused to destroy it."""

    @property
    def gone(self) -> bool:
        return self.state == "destroyed"


@dataclass(frozen=True, slots=True)
class VolumeSight:
    """A volume as it was last seen."""

    id: str
    name: str
    state: str
    region: str
    size_gb: int
    attached_to: str | None
    created_at: str
    seen_at: float
    deleted: bool = False
    host_ok: bool = True
    unreachable_since: float | None = None
    retention_days: int | None = None
    fresh: Literal["", "empty", "copy"] = ""
    """We made it, and no machine was made on it yet: as an empty one nothing in it can be lost."""
    listed: bool = False
    """A list has shown it, or we made it: then a list that shows it shows its successors too."""
    missed_at: float | None = None
    """When it was first not found by its id; found missing again later, it is gone."""


@dataclass(frozen=True, slots=True)
class SnapshotSight:
    """A snapshot as it was listed."""

    id: str
    created_at: str
    ready: bool


@dataclass(frozen=True, slots=True)
class Snapshots:
    """The snapshots of one volume, and when they were listed."""

    volume_id: str
    seen_at: float
    found: tuple[SnapshotSight, ...]
    ordered_at: float | None = None
    """When the answer to an order for one was lost: it may be taken yet."""


@dataclass(frozen=True, slots=True)
class Late:
    """A look that has found nothing, which is no proof before `until`: a call of an earlier process may yet arrive."""

    look: "Action"
    at: float
    until: float


@dataclass(frozen=True, slots=True)
class Failure:
    """The last call that did not succeed, until one does."""

    op: str
    reason: Reason
    message: str
    status: int
    count: int
    stuck: bool
    """Time alone does not heal it: a person must change something (then it heals by itself)."""
    capacity: bool = False
    """There was no room; elsewhere there may be."""
    retry_after: float | None = None
    late: Late | None = None


@dataclass(frozen=True, slots=True)
class World:
    """What Fly holds for one Agent, as far as it is known. Folded from answers; never guessed."""

    quiet_since: float | None
    """The last moment at which a create may have been sent whose outcome is unknown; None when there never was one."""
    born: bool = False
    """We made the app and heard it: what we did not put there since is not there."""
    app_present: bool | None = None
    app_org: str | None = None
    app_looked_at: float | None = None
    """When it was made, seen or not found, by our own call."""
    app_things: int | None = None
    """How many machines and volumes it had at that look, as Fly counts them."""
    app_delete_accepted: bool = False
    machines: tuple[MachineSight, ...] | None = None
    machine_looks: tuple[float, ...] = ()
    """When the app's machines were listed in full, the last two times."""
    volumes: tuple[VolumeSight, ...] | None = None
    volume_looks: tuple[float, ...] = ()
    """When the app's volumes were listed in full, the last two times."""
    refused: tuple[tuple[str, float], ...] = ()
    """Regions that had no room, each with the last time it said so."""
    crowded: tuple[str, float] | None = None
    """The volume whose host has no room for its machine, and when that was said."""
    unforked: tuple[str, int, float] | None = None
    """A volume that Fly would not fork: how often it has refused, and when it did last."""
    restored: str = ""
    """The value of volume.restoreFrom that we made the volume from."""
    lost_volume: bool = False
    """A create of a volume was sent and its answer lost: a second one of the same name may turn up, never used."""
    snapshots: tuple[Snapshots, ...] = ()
    addresses: frozenset[str] = frozenset()
    """Kinds of addresses that the app has, as far as we gave them."""
    own_version: str | None = None
    """The machine version that our last create or update made."""
    idle: IdleRest | None = None
    attempts: Attempts | None = None
    restart_needed: bool = False
    """The volume has grown and the machine must restart to see it."""
    took_down: bool = False
    """We destroyed the Agent's machine, and sent no create since whose outcome is unknown."""
    marked: bool = False
    """The app carries the mark of a retained one."""
    token_epoch: int | None = None
    """Of the token that is stored in its app; NO_TOKEN when there is none."""
    secrets_version: int | None = None
    stop_asked_at: float | None = None
    start_asked_at: float | None = None
    touched_at: float = 0.0
    """When we last changed anything at Fly: a last look must be younger."""
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Beat:
    """The last heartbeat of the Agent's machine."""

    machine_id: str
    machine_version: str | None
    age: float
    ready: bool
    status: str
    boot_phase: str
    bundle_revision: str | None
    restarts: int
    supervisor_version: str
    runtime_version: str | None
    last_exit: str
    degraded: tuple[str, ...]
    pending_pairings: int | None = None
    active_sessions: int | None = None
    connections: int | None = None
    last_activity_at: float | None = None
    next_run_at: float | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where and with what the Agent's things are made: its spec completed by settings, pinned once used."""

    app: str
    org: str
    network: str | None
    regions: tuple[str, ...]
    image: str
    endpoint_url: str
    credential: str
    endpoint_authority: str = ""
    """PEM certificates by which machines know the endpoint; empty when it is one that everybody knows."""
    credential_problem: str = ""
    """Why this Agent can't use its Fly credential; empty when it can."""


@dataclass(frozen=True, slots=True)
class Source:
    """Another Agent's volume, to be restored from: where it is; without a volume there is nothing to restore."""

    app: str
    volume_id: str
    size_gb: int


Room = Mapping[str, tuple[str, ...] | None]
"""For a region or alias that was asked about: regions that have room for the guest; None when Fly could not tell."""


@dataclass(frozen=True, slots=True)
class AgentView:
    """All of it at one moment."""

    now: float
    wall: float
    """The same moment in epoch seconds, for what Fly dates."""
    declared: Declared
    remembered: Remembered
    names: Names
    place: Place
    owner_id: str
    cluster: str
    token_root: str
    """The mark of the root that tokens are derived from."""
    token_root_changed: bool
    """There was another before it, and machines may hold tokens of that one."""
    world: World
    secrets: Resolution
    bundle_revision: str | None
    beat: Beat | None
    listening_since: float
    """Since when heartbeats would have been heard; younger than one window, silence means nothing."""
    swept: bool
    """The org's machines have been listed in full at least once."""
    absence_seconds: float
    room: Room
    source: Source | None
    """The Agent that volume.restoreFrom names, when there is one with a volume."""
    adopt_from: str
    """The cluster whose machines may be taken over; empty for none."""
    may_roll: bool
    """Whether this Agent may take up changed defaults now: not all do so at once."""
    endpoint_suspect: bool
    """So many agents fell silent together that it is our endpoint's fault."""
    nudged_at: float
    """When a person last asked for a look."""
    listing_note: str
    """How its org is listed, when not as it should be; empty otherwise."""

    @property
    def incarnation(self) -> str:
        """The uid that its tokens are derived from: of the Agent that first made the app, kept through adoption."""
        if self.remembered.incarnation:
            return self.remembered.incarnation
        told = (m.metadata.get("roost_incarnation") for m in self.ours() if m.state != "destroying")
        return next((uid for uid in told if uid), self.declared.uid)

    def is_ours(self, metadata: Mapping[str, str]) -> bool:
        """Ownership: the machine itself says our owner id and this Agent's namespace and name (never the uid)."""
        return (
            metadata.get("roost_owner") == self.owner_id
            and metadata.get("roost_namespace") == self.declared.namespace
            and metadata.get("roost_name") == self.declared.name
        )

    def ours(self) -> list[MachineSight]:
        """Machines that say they are this Agent's and are not gone."""
        return [m for m in self.world.machines or () if not m.gone and self.is_ours(m.metadata)]

    def started_at(self, machine: MachineSight) -> float | None:
        """When a machine last began to run, as far as this process has seen it: by us, by traffic or by hand."""
        times = [t for t in (self.world.start_asked_at, machine.up_since) if t is not None]
        return max(times, default=None)

    @property
    def forgotten(self) -> frozenset[str]:
        """Ids that a person lets go of in a deletion."""
        named = self.declared.annotations.get("roost.dev/forget", "")
        return frozenset(word.strip() for word in named.split(",") if word.strip())

    @property
    def silence_window(self) -> float:
        return self.declared.silence_window


# --- Actions: each is exactly one call at one API boundary. -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoreFinalizer:
    """Our finalizer, before anything is made."""


@dataclass(frozen=True, slots=True)
class ReleaseFinalizer:
    """Nothing of this Agent exists any more."""


@dataclass(frozen=True, slots=True)
class CreateApp:
    pass


@dataclass(frozen=True, slots=True)
class GetApp:
    pass


@dataclass(frozen=True, slots=True)
class DeleteApp:
    pass


@dataclass(frozen=True, slots=True)
class SetToken:
    """The heartbeat token of this epoch as an app secret."""

    epoch: int


@dataclass(frozen=True, slots=True)
class ForgetToken:
    """Takes the Agent's token out of its app."""


@dataclass(frozen=True, slots=True)
class MarkRetained:
    """A secret whose name tells that the app is kept on purpose."""


@dataclass(frozen=True, slots=True)
class AssignAddress:
    """One address for the app."""

    kind: Literal["v6", "shared_v4"]


@dataclass(frozen=True, slots=True)
class AskRoom:
    """Which regions of this region or alias have room for the guest."""

    region: str


@dataclass(frozen=True, slots=True)
class ListMachines:
    pass


@dataclass(frozen=True, slots=True)
class GetMachine:
    id: str


@dataclass(frozen=True, slots=True)
class CreateMachine:
    name: str
    region: str
    volume_id: str


@dataclass(frozen=True, slots=True)
class UpdateMachine:
    """Replaces its whole config; it (re)starts, or with `launch` off comes to rest.

    `rolls`: it takes up defaults that have changed for everybody.
    """

    id: str
    version: str
    volume_id: str
    launch: bool = True
    rolls: bool = False


@dataclass(frozen=True, slots=True)
class StampMachine:
    """Writes metadata of a machine, which neither restarts it nor makes a new version; None takes a key away."""

    id: str
    version: str
    metadata: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class StartMachine:
    id: str


@dataclass(frozen=True, slots=True)
class StopMachine:
    id: str
    idle: IdleRest | None = None


@dataclass(frozen=True, slots=True)
class SuspendMachine:
    id: str
    idle: IdleRest | None = None


@dataclass(frozen=True, slots=True)
class RestartMachine:
    """Stops and starts it; as an attempt at recovery with the reason for it."""

    id: str
    because: str = ""


@dataclass(frozen=True, slots=True)
class DeleteMachine:
    id: str


@dataclass(frozen=True, slots=True)
class AwaitMachine:
    """Waits at Fly until the machine has reached a state; changes nothing, so news may cut it short."""

    id: str
    state: str
    version: str | None
    seconds: int


@dataclass(frozen=True, slots=True)
class ListVolumes:
    pass


@dataclass(frozen=True, slots=True)
class GetVolume:
    id: str


@dataclass(frozen=True, slots=True)
class CreateVolume:
    """An empty volume, or one filled from a snapshot or by forking another; the serial tells which is the latest."""

    region: str
    serial: int = 1
    snapshot: str | None = None
    fork: str | None = None
    size_gb: int | None = None
    """At least so large; None: as declared."""
    restores: str = ""
    """The value of volume.restoreFrom that this follows."""


@dataclass(frozen=True, slots=True)
class KeepSnapshots:
    """Sets for how long Fly keeps the volume's snapshots."""

    id: str
    days: int


@dataclass(frozen=True, slots=True)
class ListSnapshots:
    app: str
    volume_id: str


@dataclass(frozen=True, slots=True)
class CreateSnapshot:
    app: str
    volume_id: str


@dataclass(frozen=True, slots=True)
class ExtendVolume:
    id: str
    size_gb: int


@dataclass(frozen=True, slots=True)
class DeleteVolume:
    id: str


Action = (
    StoreFinalizer
    | ReleaseFinalizer
    | CreateApp
    | GetApp
    | DeleteApp
    | SetToken
    | ForgetToken
    | MarkRetained
    | AssignAddress
    | AskRoom
    | ListMachines
    | GetMachine
    | CreateMachine
    | UpdateMachine
    | StampMachine
    | StartMachine
    | StopMachine
    | SuspendMachine
    | RestartMachine
    | DeleteMachine
    | AwaitMachine
    | ListVolumes
    | GetVolume
    | CreateVolume
    | ExtendVolume
    | KeepSnapshots
    | DeleteVolume
    | ListSnapshots
    | CreateSnapshot
)


# --- Steps: what the planner answers. ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Act:
    """Do this one thing, fold the answer, ask again; `tell` makes an event of it when it is done."""

    action: Action
    phase: Phase
    say: str
    tell: Reason | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until something moves: look again after so many seconds, or by growing back-off (None)."""

    phase: Phase
    reason: Reason
    say: str
    after: float | None = None
    noted: bool = False
    """It goes on only when the status holds what has happened."""


@dataclass(frozen=True, slots=True)
class Stuck:
    """It can't go on without a change by a person; looked at again slowly, and at once when the cause may be gone."""

    phase: Phase
    reason: Reason
    say: str
    after: float = 300.0


@dataclass(frozen=True, slots=True)
class Settled:
    """As declared; `say` what a person should know all the same."""

    phase: Phase
    reason: Reason
    after: float
    say: str = ""
    rest: IdleRest | None = None
    """Its rest, which begins when the status holds it."""


Step = Act | Wait | Stuck | Settled
