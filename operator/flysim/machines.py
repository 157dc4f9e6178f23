"""Machines: which call is allowed when, and what it answers. What then happens is `flysim.life`'s."""

from typing import Any

from flysim import errors, hosts, machine_config, paging, regions, requests, secrets
from flysim.call import Answer, Call, answer
from flysim.hosts import reserves
from flysim.leases import Leases
from flysim.life import Life, stop_of
from flysim.records import App, Host, Machine, Volume, event_json, lease_json, machine_json, old_version_json
from flysim.requests import Guest, LaunchMachine, MachineConfig, SignalMachine, StopConfig
from flysim.world import World

_PAGE = 1000
_EVENTS = range(1, 51)
_WAIT = range(1, 61)
_WAIT_STATES = frozenset({"started", "stopped", "suspended", "destroyed", "failed", "settled"})
_DESTROYABLE = frozenset({"stopped", "suspended", "failed", "created"})
_STARTABLE = frozenset({"stopped", "suspended", "failed"})
_UPDATABLE = frozenset({"started", "stopped", "suspended", "failed", "created"})
_STOPPABLE = frozenset({"started", "starting", "restarting", "suspended"})
_MOST_SUSPENDED_MB = 2048


class Machines:
    """The calls on `/v1/apps/{app}/machines`, without leases and metadata."""

    def __init__(self, world: World, life: Life, leases: Leases) -> None:
        self._world = world
        self._life = life
        self._leases = leases

    # Reading

    async def list_machines(self, call: Call) -> Answer:
        app = self._world.app(call.params["app"])
        there = self._world.lists.shown(app.machines.values())
        machines = [machine for machine in there if matches(machine, call.query)]
        shown, cursor = paging.page(
            machines, lambda m: (m.created_at, m.id), call.query, now=self._world.clock.now(), most=_PAGE
        )
        summary, leases = requests.flag(call.query, "summary"), requests.flag(call.query, "include_leases")
        rows = [machine_json(m, summary=summary) | (self._lease(m) if leases else {}) for m in shown]
        return answer(200, rows, {"fly-next-cursor": cursor} if cursor else None)

    async def get_machine(self, call: Call) -> Answer:
        machine = self._machine(call)
        version = requests.last(call.query, "version") or machine.version
        if version not in machine.versions:
            raise errors.machine_not_found()
        row = machine_json(machine) if version == machine.version else old_version_json(machine, version)
        return answer(200, row | (self._lease(machine) if requests.flag(call.query, "include_leases") else {}))

    async def list_events(self, call: Call) -> Answer:
        """Newest first."""
        machine = self._machine(call)
        limit = requests.number(call.query, "limit")
        if limit is not None and limit not in _EVENTS:
            raise errors.invalid(f"limit: value must be inside range [{_EVENTS[0]}, {_EVENTS[-1]}]")
        return answer(200, [event_json(event) for event in reversed(machine.events[-(limit or 20) :])])

    async def wait_machine(self, call: Call) -> Answer:
        timeout = requests.number(call.query, "timeout")
        if timeout is not None and timeout not in _WAIT:
            raise errors.wait_range()
        states = requests.words(call.query, "state") or ["started"]
        if unknown := set(states) - _WAIT_STATES:
            raise errors.invalid(f"invalid WaitMachineRequest.State: {', '.join(sorted(unknown))}")
        version = requests.last(call.query, "version") or requests.last(call.query, "instance_id")
        machine = self._machine(call)
        if version is not None and version not in machine.versions:
            raise errors.machine_not_found()
        return await self._wait(machine, states, version, requests.last(call.query, "from_event_id") or "", timeout)

    async def _wait(
        self, machine: Machine, states: list[str], version: str | None, after_event: str, timeout: int | None
    ) -> Answer:
        """A wait for what can't come any more (a replaced version, a destroyed machine) ends at once."""
        wanted = ", ".join(states)
        state = await self._life.until(
            machine, frozenset([*states, "destroyed"]), version, after_event, timeout=timeout or _WAIT[-1]
        )
        if version is not None and version != machine.version and machine.state != "destroyed":
            raise errors.wait_timeout(wanted, "replaced")
        if state is None:
            raise errors.wait_timeout(wanted, machine.state)
        if state == "destroyed" and not {"destroyed", "settled"} & set(states):
            raise errors.machine_not_found()
        event = machine.events[-1].id
        return answer(200, {"ok": True, "state": state, "version": machine.version, "event_id": event})

    # Making and changing

    async def create_machine(self, call: Call) -> Answer:
        app = self._world.living_app(call.params["app"])
        body = requests.read(LaunchMachine, call.body)
        config, shown = machine_config.read(body.config)
        self._check_name(app, body.name)
        self._check_secrets(app, body)
        places = regions.resolve(body.region)
        volume = self._mountable(app, config, places if body.region else None)
        host = self._host(app, config.guest, places, volume)
        machine = self._make(app, body, config, shown, host)
        call.machine, call.effect = machine.id, "machine created"
        if volume is not None:
            call.volume = volume.id
            self._mount(machine, volume)
        extra = self._with_lease(machine, call, body)
        self._life.create(machine, launch=not body.skip_launch)
        self._world.touch(machine)
        return answer(200, machine_json(machine) | extra)

    async def update_machine(self, call: Call) -> Answer:
        """The whole config is replaced; a machine that runs restarts, one that does not is started."""
        machine = self._guarded(call)
        body = requests.read(LaunchMachine, call.body)
        if body.current_version and body.current_version != machine.version:
            raise errors.version_mismatch()
        if machine.state == "replacing":
            raise errors.concurrent_update()
        if machine.state not in _UPDATABLE:
            raise errors.wrong_state("update", machine.state)
        if body.name not in ("", machine.name):
            raise errors.invalid("the name of a machine cannot be changed")
        if body.region and machine.region not in regions.resolve(body.region):
            raise errors.invalid("the region of a machine cannot be changed")
        config, shown = machine_config.read(body.config)
        self._check_mount(machine, config)
        self._check_secrets(machine.app, body)
        if reserves(machine) or not body.skip_launch:
            self._check_room(machine, config.guest)
        stop = stop_of(machine)
        self._new_version(machine, body, config, shown)
        call.effect = "machine updated"
        extra = self._with_lease(machine, call, body)
        self._life.replace(machine, *stop, launch=not body.skip_launch)
        return answer(200, machine_json(machine) | extra)

    async def delete_machine(self, call: Call) -> Answer:
        """Taken even when the host is dead; the machine is `destroying` then, until its host is back."""
        machine = self._world.standing_machine(call.params["app"], call.params["machine"])
        self._leases.guard(machine, call)
        force = requests.flag(call.query, "force", "kill")
        if machine.state != "destroying":
            if machine.state not in _DESTROYABLE and not force:
                raise errors.not_destroyable()
            call.effect = "machine deleted"
            self._life.destroy(machine)
        return answer(200, {"ok": True})

    # Starting and stopping

    async def start_machine(self, call: Call) -> Answer:
        machine = self._guarded(call)
        before = machine.state
        if before == "replacing":
            raise errors.being_replaced()
        if before not in ("started", "starting"):
            if before not in _STARTABLE:
                raise errors.wrong_state("start", before)
            if self._world.clock.now() < machine.active_until:
                raise errors.still_active()
            if not reserves(machine):
                self._check_room(machine, machine.config.guest)
            call.effect = "machine started"
            self._life.start(machine)
        return answer(200, {"previous_state": before, "migrated": False, "new_host": ""})

    async def stop_machine(self, call: Call) -> Answer:
        machine = self._guarded(call)
        body = requests.read(StopConfig, call.body)
        signal, timeout = stop_of(machine)
        signal, timeout = requests.stop_signal(body.signal, signal), requests.seconds(body.timeout, timeout)
        if machine.state in ("created", "replacing", "suspending"):
            raise errors.wrong_state("stop", machine.state)
        if machine.state in _STOPPABLE:
            call.effect = "machine stopped"
            self._life.stop(machine, signal, timeout)
        return answer(200, {"ok": True})

    async def suspend_machine(self, call: Call) -> Answer:
        machine = self._guarded(call)
        if machine.state != "started":
            raise errors.wrong_state("suspend", machine.state)
        if (why := unsuspendable(machine.config)) is not None:
            raise errors.not_suspendable(why)
        call.effect = "machine suspended"
        self._life.suspend(machine)
        return answer(200, {"ok": True})

    async def cordon_machine(self, call: Call) -> Answer:
        return self._cordon(call, cordoned=True)

    async def uncordon_machine(self, call: Call) -> Answer:
        return self._cordon(call, cordoned=False)

    def _cordon(self, call: Call, *, cordoned: bool) -> Answer:
        machine = self._guarded(call)
        if machine.cordoned != cordoned:
            call.effect = "machine cordoned" if cordoned else "machine uncordoned"
            self._life.cordon(machine, cordoned=cordoned)
        return answer(200, {"ok": True})

    async def restart_machine(self, call: Call) -> Answer:
        machine = self._guarded(call)
        signal, timeout = stop_of(machine)
        if (wanted := requests.last(call.query, "timeout")) is not None:
            timeout = float(wanted) if wanted.isdecimal() else requests.seconds(wanted, timeout)
        signal = requests.stop_signal(requests.last(call.query, "signal"), signal)
        if machine.state not in ("started", "stopped", "failed"):
            raise errors.wrong_state("restart", machine.state)
        if not reserves(machine):
            self._check_room(machine, machine.config.guest)
        call.effect = "machine restarted"
        kill = requests.flag(call.query, "force_stop")
        self._life.restart(machine, signal, 0.0 if kill else timeout)
        return answer(200, {"ok": True})

    async def signal_machine(self, call: Call) -> Answer:
        machine = self._guarded(call)
        number = requests.any_signal(requests.read(SignalMachine, call.body).signal)
        if machine.boot is None or machine.boot.frozen:
            raise errors.wrong_state("signal", machine.state)
        call.effect = "machine signalled"
        self._life.signal(machine, number)
        return answer(200, {"ok": True})

    # Parts of the above

    def _machine(self, call: Call) -> Machine:
        return self._world.machine(call.params["app"], call.params["machine"])

    def _guarded(self, call: Call) -> Machine:
        """A machine that the caller may change. Raises Refusal (404, 408, 409)."""
        machine = self._world.living_machine(call.params["app"], call.params["machine"])
        self._leases.guard(machine, call)
        return machine

    def _lease(self, machine: Machine) -> dict[str, Any]:
        lease = self._leases.held(machine)
        return {"lease": {k: v for k, v in lease_json(lease).items() if k != "nonce"}} if lease is not None else {}

    def _with_lease(self, machine: Machine, call: Call, body: LaunchMachine) -> dict[str, Any]:
        if body.lease_ttl <= 0:
            return {}
        return {"nonce": self._leases.grant(machine, call, body.lease_ttl).nonce}

    def _check_name(self, app: App, name: str) -> None:
        for other in app.machines.values():
            if name and other.name == name and other.state != "destroyed":
                raise errors.machine_name_taken(other.id, name)

    def _check_secrets(self, app: App, body: LaunchMachine) -> None:
        if body.min_secrets_version > app.secrets_version:
            raise errors.secrets_not_yet()

    def _check_mount(self, machine: Machine, config: MachineConfig) -> None:
        """An update may let go of the volume, but not take another one."""
        held = machine.volume.id if machine.volume is not None else None
        for mount in config.mounts:
            if mount.volume != held:
                raise errors.invalid("the volume of a machine cannot be changed, create another machine")

    def _mountable(self, app: App, config: MachineConfig, places: list[str] | None) -> Volume | None:
        """The volume that a new machine is to hold; `places` None means wherever the volume is. Raises Refusal."""
        if not config.mounts:
            return None
        volume = app.volumes.get(config.mounts[0].volume)
        if volume is None or volume.deleted_at is not None:
            raise errors.mounted_volume_not_found()
        if volume.machine_id is not None:
            raise errors.volume_claimed(volume.machine_id)
        if places is not None and volume.region not in places:
            raise errors.volume_elsewhere(volume.id, volume.region, ", ".join(places))
        return volume

    def _check_room(self, machine: Machine, guest: Guest) -> None:
        if (lack := hosts.lack(machine.host, guest, but=machine)) is not None:
            raise errors.host_full(lack)

    def _host(self, app: App, guest: Guest, places: list[str], volume: Volume | None) -> Host:
        """Where a new machine goes: to its volume, or into the first region that takes it. Raises Refusal."""
        most = self._world.quotas.machines_per_app
        if most is not None and sum(machine.state != "destroyed" for machine in app.machines.values()) >= most:
            raise errors.account_limit(most)
        if volume is not None:
            self._check_quota(app, guest, [volume.region])
            if not volume.host.up or hosts.lack(volume.host, guest) is not None:
                raise errors.volume_host_full(volume.id)
            return volume.host
        for region in self._check_quota(app, guest, places):
            if (host := self._world.hosts.place(region, guest)) is not None:
                return host
        raise errors.region_full()

    def _check_quota(self, app: App, guest: Guest, places: list[str]) -> list[str]:
        """The regions in which the org may have one more of these guests. Raises Refusal (403) when there is none."""
        over: dict[str, int] = {}
        for region in places:
            most = self._world.quotas.memory_mb.get((app.org, region))
            if most is not None and (used := self._world.memory_used(app.org, region) + guest.memory_mb) > most:
                over[region] = used
        if len(over) == len(places):
            raise errors.over_quota(app.org, over[places[0]], places[0])
        return [region for region in places if region not in over]

    def _make(self, app: App, body: LaunchMachine, config: MachineConfig, shown: dict[str, Any], host: Host) -> Machine:
        world, now = self._world, self._world.clock.now()
        address = world.ids.address(world.addresses)
        world.addresses.add(address)
        machine = Machine(
            id=world.ids.machine(),
            name=body.name or world.ids.machine_name(),
            app=app,
            host=host,
            region=host.region,
            state="created",
            version="",
            shown=shown,
            config=config,
            private_ip=world.ids.private_ip(),
            address=address,
            created_at=now,
            updated_at=now,
            cordoned=body.skip_service_registration,
        )
        app.machines[machine.id] = world.machines[machine.id] = host.machines[machine.id] = machine
        self._new_version(machine, body, config, shown)
        return machine

    def _new_version(self, machine: Machine, body: LaunchMachine, config: MachineConfig, shown: dict[str, Any]) -> None:
        """Fixes config and secrets under a new version. Boots of this version get these secrets and no later ones."""
        machine.version = self._world.ids.ulid()
        machine.config, machine.shown = config, shown
        machine.digests[machine.version], machine.runs = self._world.images.resolve(config.image)
        machine.secrets = {} if body.skip_secrets else secrets.injected(machine.app, config)
        if config.mounts and machine.volume is not None:
            self._mount(machine, machine.volume)
        machine.versions[machine.version] = machine.shown

    def _mount(self, machine: Machine, volume: Volume) -> None:
        """Fly's echo of a mount tells about the volume."""
        told = {"name": volume.name, "size_gb": volume.size_gb, "encrypted": volume.encrypted}
        mount = told | machine.shown["mounts"][0]
        machine.shown = machine.versions[machine.version] = machine.shown | {"mounts": [mount]}
        if machine.volume is None:
            self._life.attach(machine, volume)


def unsuspendable(config: MachineConfig) -> str | None:
    """Why a machine with this config can't be suspended; None when it can."""
    if config.guest.memory_mb > _MOST_SUSPENDED_MB:
        return f"it has {config.guest.memory_mb} MB of memory, more than {_MOST_SUSPENDED_MB} MB"
    return "it has swap" if config.init.swap_size_mb else None


def matches(machine: Machine, query: requests.Query) -> bool:
    """Whether a list with this query shows the machine. Raises Refusal (400)."""
    if machine.state == "destroyed" and not requests.flag(query, "include_deleted"):
        return False
    if (places := requests.words(query, "region")) and machine.region not in places:
        return False
    if (states := requests.words(query, "state")) and machine.state not in states:
        return False
    wanted = {key.removeprefix("metadata."): values[-1] for key, values in query.items() if key.startswith("metadata.")}
    return all(machine.config.metadata.get(key) == value for key, value in wanted.items())
