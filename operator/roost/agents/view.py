"""Everything the planner may know about one Agent, and the steps it may answer with. Pure values, no behaviour.

Times are seconds of one monotonic clock. `None` always means *unknown*, never *absent*: absence is said by an empty
tuple or `present=False` together with the time of the look that found nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from roost.agents.names import Names
from roost.api.agent import AgentSpec, Phase
from roost.api.conditions import Reason
from roost.secrets.state import Resolution

FINALIZER = "roost.dev/machine"
WAIT_SECONDS = 60
"""The longest wait that Fly's wait call takes."""
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
    def wants_running(self) -> bool:
        return self.spec.desired_state == "Running" and not self.revoked


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the status remembers: whose app it is and which ids are in it. (What was pinned is in `Place`.)"""

    app: str | None = None
    incarnation: str | None = None
    machine_id: str | None = None
    volume_id: str | None = None
    volume_region: str | None = None
    volume_size_gb: int | None = None


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
    retry_after: float | None = None


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
    app_delete_accepted: bool = False
    machines: tuple[MachineSight, ...] | None = None
    machine_looks: tuple[float, ...] = ()
    """When the app's machines were listed in full, the last two times."""
    volumes: tuple[VolumeSight, ...] | None = None
    volumes_listed_at: float | None = None
    empty_looks: tuple[float, ...] = ()
    """The last two times when full lists of the app's volumes held none of ours in a row."""
    refused_regions: tuple[str, ...] = ()
    token_epoch: int | None = None
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
    credential_problem: str = ""
    """Why this Agent can't use its Fly credential; empty when it can."""


@dataclass(frozen=True, slots=True)
class AgentView:
    """All of it at one moment."""

    now: float
    declared: Declared
    remembered: Remembered
    names: Names
    place: Place
    owner_id: str
    cluster: str
    world: World
    secrets: Resolution
    bundle_revision: str | None
    beat: Beat | None
    listening_since: float
    """Since when heartbeats would have been heard; younger than one window, silence means nothing."""
    swept: bool
    """The org's machines have been listed in full at least once."""
    absence_seconds: float

    @property
    def incarnation(self) -> str:
        return self.remembered.incarnation or self.declared.uid

    @property
    def silence_window(self) -> float:
        h = self.declared.spec.heartbeat
        return float(h.interval_seconds * h.missed_before_unhealthy)


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
    """Takes our secret out of a shared app."""


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
    id: str
    version: str
    volume_id: str


@dataclass(frozen=True, slots=True)
class StartMachine:
    id: str


@dataclass(frozen=True, slots=True)
class StopMachine:
    id: str


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
    region: str


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
    | ListMachines
    | GetMachine
    | CreateMachine
    | UpdateMachine
    | StartMachine
    | StopMachine
    | DeleteMachine
    | AwaitMachine
    | ListVolumes
    | GetVolume
    | CreateVolume
    | ExtendVolume
    | DeleteVolume
)


# --- Steps: what the planner answers. ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Act:
    """Do this one thing, fold the answer, ask again."""

    action: Action
    phase: Phase
    say: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do until something moves: look again after so many seconds, or by growing back-off (None)."""

    phase: Phase
    reason: Reason
    say: str
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Stuck:
    """It can't go on without a change by a person; looked at again slowly, and at once when the cause may be gone."""

    phase: Phase
    reason: Reason
    say: str
    after: float = 300.0


@dataclass(frozen=True, slots=True)
class Settled:
    """As declared."""

    phase: Phase
    reason: Reason
    after: float


Step = Act | Wait | Stuck | Settled
