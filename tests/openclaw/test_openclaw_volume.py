"""What goes wrong around the agent: its disk, its clock, the endpoint. It goes on with the last good bundle."""

import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from machine import eventually
from openclaw_world import World

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.openclaw_full, pytest.mark.timeout(600)]

YEAR_SECONDS = 365 * 24 * 3600
SKEW = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static const long *skew;
__attribute__((constructor)) static void open_skew(void) {
    const char *name = getenv("SKEW_FILE");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    void *at = file < 0 ? MAP_FAILED : mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    if (at != MAP_FAILED) skew = at;
    if (file >= 0) close(file);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int done = real(clock, now);
    if (!done && skew && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *skew;
    return done;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec fine;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &fine);
    now->tv_sec = fine.tv_sec;
    now->tv_usec = fine.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


class Clock:
    """The wall clock of one machine; moved for the supervisor and for OpenClaw at once, while they run."""

    def __init__(self, folder: Path) -> None:
        source, self.library, self.skew = folder / "skew.c", folder / "skew.so", folder / "skew"
        source.write_text(SKEW)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", self.library, source, "-ldl"], check=True)
        self.skew.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(self.library), "SKEW_FILE": str(self.skew)}

    def move(self, seconds: int) -> None:
        """From now on it is so many seconds off."""
        with self.skew.open("r+b") as file:
            file.write(seconds.to_bytes(8, "little", signed=True))

    def before(self, node: Path, folder: Path) -> Path:
        """A Node that lives by this clock."""
        wrapper = folder / "node"
        given = " ".join(f"{name}={value}" for name, value in self.environment.items())
        wrapper.write_text(f'#!/bin/sh\nexec env {given} {node} "$@"\n')
        wrapper.chmod(0o755)
        return wrapper


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here to make a clock that can be moved")
    return Clock(tmp_path_factory.mktemp("clock"))


class Disk:
    """A small volume of its own, which only those below `under` see; it outlives the machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        command = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=400m none "$0" && exec sleep infinity', folder]
        self._holder = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.under = ["nsenter", "-m", "-t", str(self._holder.pid)]
        self.path = Path(f"/proc/{self._holder.pid}/root{folder}")

    @property
    def there(self) -> bool:
        if self._holder.poll() is not None:
            pytest.skip("unshare is not permitted here: no mount namespace for a volume")
        return self.path.is_mount()

    def turn_read_only(self) -> None:
        """As a file system does after an error. What is open for writing stays so: the kernel has no way for a test."""
        # Made beside and moved there: once somebody writes to a mount, it can't be made read-only.
        self._in_it('mkdir "$0.ro" && mount --bind "$0" "$0.ro" && mount -o remount,bind,ro "$0.ro"')
        self._in_it('mount --move "$0.ro" "$0" && rmdir "$0.ro"')

    def turn_writable(self) -> None:
        self._in_it('umount -l "$0"')

    def _in_it(self, script: str) -> None:
        subprocess.run([*self.under, "sh", "-c", script, str(self._folder)], check=True)

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while free := shutil.disk_usage(self.path).free:
                file.write(bytes(min(free, 1 << 20)))

    def make_room(self) -> None:
        self._filler.unlink()

    @property
    def _filler(self) -> Path:
        return self.path / "filler"

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def disk(world: World) -> AsyncIterator[Disk]:
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        pytest.skip("no `unshare` and `nsenter` here to make a volume with")
    made = Disk(world.machine.data)
    await eventually(lambda: made.there, "the volume")
    yield made
    world.machine.kill()
    made.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def talking(world: World, disk: Disk, clock: Clock) -> AsyncIterator[World]:
    """An agent on a small volume of its own, with a clock of its own, that has talked already."""
    node = clock.before(world.opt / "node" / "bin" / "node", clock.library.parent)
    world.machine.environment |= {"ROOST_NODE": str(node)} | clock.environment
    world.declare()
    world.machine.start(*disk.under)
    await world.ready()
    await world.pair()
    await world.turn("first")
    yield world


async def test_on_a_full_disk_it_goes_on_with_what_it_has(talking: World, disk: Disk) -> None:
    world = talking
    disk.fill()
    world.declare(soul="You are Grace." + " Truly." * 1000)
    await world.troubled("configure", "No space left on device")
    assert world.operator.last["ready"]
    assert world.starts == 1

    disk.make_room()
    world.declare(soul="You are Grace.")
    await world.well()
    assert (await world.turn("who are you?")).soul == "You are Grace."
    assert world.starts == 1


async def test_on_a_volume_that_became_read_only_it_goes_on_with_what_it_has(talking: World, disk: Disk) -> None:
    world = talking
    disk.turn_read_only()
    world.declare(soul="You are Rosalind.")
    await world.troubled("configure", "Read-only file system")
    assert world.operator.last["ready"]
    assert world.starts == 1

    disk.turn_writable()
    world.declare(soul="You are Emmy.")
    await world.well()
    assert (await world.turn("and now?")).soul == "You are Emmy."
    assert world.starts == 1


async def test_with_a_clock_that_jumps_a_year_it_goes_on(talking: World, clock: Clock) -> None:
    world = talking
    for years in (1, -1, 0):
        clock.move(years * YEAR_SECONDS)
        beats = len(world.operator.beats)
        await eventually(lambda beats=beats: len(world.operator.beats) > beats + 1, "two more heartbeats", 60)
        await world.turn(f"year {years}")
        assert world.operator.last["ready"]
    assert world.starts == 1


async def test_while_the_endpoint_is_away_it_goes_on_and_even_boots(talking: World, disk: Disk, clock: Clock) -> None:
    # Given an endpoint that does not answer
    world = talking
    await world.operator.stop()
    await world.turn("is anybody there?")
    assert world.starts == 1
    # When the whole machine is started again, and its clock is a year behind
    await world.machine.stop()
    clock.move(-YEAR_SECONDS)
    world.machine.start(*disk.under)
    # Then it takes the last good bundle, and is heard
    asked = await world.turn("and now?", seconds=150)
    assert asked.soul == "You are Emmy."
    assert asked.said[0] == "first"
    # And once the endpoint is there again, nothing is wrong
    await world.operator.start()
    await world.well()
