"""The refresher on virtual time: the real client over a scripted Fly."""

import asyncio
import contextlib
import json
import random
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fly_samples import MACHINE, ROW, VOLUME

from roost.fly import refresher as refresher_module
from roost.fly.client import Fly
from roost.fly.refresher import Refresher, State, Sweep, VolumeSweep

pytestmark = pytest.mark.looptime

Answer = Callable[[httpx.Request], httpx.Response]


def row(n: int, at: str, **more: Any) -> dict[str, Any]:
    return {**ROW, "id": f"e{n}", "updated_at": at, **more}


def page(*rows: dict[str, Any], last: str = "", cursor: str = "", error_regions: tuple[str, ...] = ()) -> Answer:
    body = {"machines": rows, "next_cursor": cursor, "last_updated_at": last, "error_regions": error_regions}
    return lambda _: httpx.Response(200, json=body)


def volume_page(*ids: str, last: str = "", error_regions: tuple[str, ...] = ()) -> Answer:
    volumes = [{**VOLUME, "id": name, "app_name": "ag-1"} for name in ids]
    body = {"volumes": volumes, "next_cursor": "", "last_updated_at": last, "error_regions": error_regions}
    return lambda _: httpx.Response(200, json=body)


def fails(status: int, text: str, **headers: str) -> Answer:
    return lambda _: httpx.Response(status, json={"error": text}, headers=headers)


def refused(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


@dataclass
class Script(httpx.AsyncBaseTransport):
    """Fly, as this test has it: one answer for each list of the org, the last one for all that follow."""

    answers: list[Answer]
    """To the lists of machines."""
    seconds: float = 0.0
    volumes: list[Answer] = field(default_factory=lambda: [volume_page()])
    apps: dict[str, Answer] = field(default_factory=dict)
    """To the list of one app's machines or volumes; one machine `e-NAME` or no volume when not here."""
    asked: list[tuple[float, dict[str, str]]] = field(default_factory=list)
    asked_volumes: list[tuple[float, dict[str, str]]] = field(default_factory=list)
    asked_apps: list[tuple[float, str]] = field(default_factory=list)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        at, query = round(now(), 3), dict(request.url.params)
        answer = self._answer(request.url.path, at, query)
        await asyncio.sleep(self.seconds)
        return answer(request)

    def _answer(self, path: str, at: float, query: dict[str, str]) -> Answer:
        if (app := re.fullmatch(r"/v1/apps/([^/]+)/(machines|volumes)", path)) is not None:
            self.asked_apps.append((at, f"{app[2]} of {app[1]}"))
            body = [{**MACHINE, "id": f"e-{app[1]}"}] if app[2] == "machines" else []
            return self.apps.get(app[1], lambda _: httpx.Response(200, json=body))
        asked, answers = (self.asked_volumes, self.volumes) if path.endswith("/volumes") else (self.asked, self.answers)
        asked.append((at, query))
        return answers.pop(0) if len(answers) > 1 else answers[0]

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.asked]


def now() -> float:
    return asyncio.get_running_loop().time()


class Mean(random.Random):
    """Jitter that is always in the middle."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


@dataclass
class Run:
    refresher: Refresher
    script: Script
    sweeps: list[Sweep]
    volumes: list[VolumeSweep]

    def after(self, index: int) -> str | None:
        return self.script.asked[index][1].get("updated_after")


@contextlib.asynccontextmanager
async def running(
    *answers: Answer, seconds: float = 0.0, rng: random.Random | None = None, **options: Any
) -> AsyncIterator[Run]:
    async def token() -> str:
        return "fm2_x"

    script = Script(list(answers), seconds)
    sweeps: list[Sweep] = []
    volumes: list[VolumeSweep] = []
    options = {"on_rows": sweeps.append, "on_volumes": volumes.append, "apps": lambda: ()} | options
    async with Fly(token, lambda *_: None, clock=now, transport=script) as fly:
        refresher = Refresher(fly, "personal", clock=now, rng=rng or Mean(), **options)
        task = asyncio.create_task(refresher.run())
        try:
            yield Run(refresher, script, sweeps, volumes)
            assert not task.done()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


T0 = "2026-11-01T10:00:00Z"
T1 = "2026-11-01T10:20:00.123456789Z"


async def test_first_everything_then_what_has_changed_since_the_newest_less_the_overlap() -> None:
    async with running(
        page(row(1, T0), last=T0), page(row(1, T1, state="destroyed"), last=T1), page(last=""), overlap=60
    ) as run:
        assert run.refresher.health.state is State.STARTING
        await asyncio.sleep(31)

        assert run.script.times == [0, 15, 30]
        assert run.script.asked[0][1] == {"limit": "1000", "include_deleted": "false"}
        assert run.script.asked[1][1]["include_deleted"] == "true"
        assert [run.after(i) for i in range(3)] == [None, "2026-11-01T09:59:00.000Z", "2026-11-01T10:19:00.123Z"]
        assert [(sweep.full, len(sweep.rows)) for sweep in run.sweeps] == [(True, 1), (False, 1), (False, 0)]
        assert run.sweeps[1].rows[0].state == "destroyed"
        assert run.refresher.health.state is State.OK


async def test_a_newest_time_never_goes_back() -> None:
    async with running(page(last=T1), page(last=T0), page(last="no time"), page(row(1, T0)), overlap=0) as run:
        await asyncio.sleep(61)
        assert {run.after(i) for i in range(1, 5)} == {"2026-11-01T10:20:00.123Z"}


async def test_without_a_time_of_the_list_its_rows_tell() -> None:
    async with running(page(row(1, T1), row(2, T0), row(3, "0001-01-01T00:00:00Z")), overlap=0) as run:
        await asyncio.sleep(16)
        assert run.after(1) == "2026-11-01T10:20:00.123Z"


async def test_an_org_without_machines_is_asked_in_full_until_it_has_one() -> None:
    async with running(page(), page(), page(row(1, T0), last=T0)) as run:
        await asyncio.sleep(46)
        assert [sweep.full for sweep in run.sweeps] == [True, True, True, False]


async def test_a_full_sweep_every_ten_minutes() -> None:
    async with running(page(last=T0)) as run:
        await asyncio.sleep(1261)
        assert [sweep.started_at for sweep in run.sweeps if sweep.full] == [0, 600, 1200]
        assert len(run.sweeps) == 85


async def test_all_pages_make_one_sweep_and_its_length_is_added_to_the_overlap() -> None:
    async with running(
        page(row(1, T0), last=T0, cursor="a"),
        page(cursor="b", error_regions=("ams",)),
        page(row(2, T1), last=T1),
        page(last=T1),
        seconds=0.5,
        overlap=60,
    ) as run:
        await asyncio.sleep(16)
        sweep = run.sweeps[0]
        assert [r.id for r in sweep.rows] == ["e1", "e2"]
        assert (sweep.error_regions, sweep.started_at, sweep.finished_at) == (frozenset({"ams"}), 0.0, 1.5)
        assert run.after(3) == "2026-11-01T10:18:58.623Z"


async def test_a_list_that_breaks_off_is_no_sweep() -> None:
    async with running(page(row(1, T0), last=T0, cursor="a"), fails(500, "internal"), page(last=T0)) as run:
        await asyncio.sleep(1.9)
        assert run.sweeps == []
        assert run.refresher.health.state is State.UNAVAILABLE
        await asyncio.sleep(10)
        assert [sweep.full for sweep in run.sweeps] == [True]


async def test_a_region_that_can_be_read_again_is_followed_by_a_full_sweep() -> None:
    blind = page(last=T0, error_regions=("ams",))
    async with running(blind, blind, page(last=T0), page(last=T0)) as run:
        await asyncio.sleep(50)
        told = [(sweep.started_at, sweep.full, set(sweep.error_regions)) for sweep in run.sweeps]
        assert told == [
            (0, True, {"ams"}),
            (15, False, {"ams"}),
            (30, False, set()),
            (30 + refresher_module.MIN_GAP_SECONDS, True, set()),
            (47, False, set()),
        ]


async def test_jitter_stays_within_ten_percent() -> None:
    async with running(page(last=T0), rng=random.Random(1)) as run:
        await asyncio.sleep(3000)
        gaps = [b - a for a, b in zip(run.script.times, run.script.times[1:], strict=False)]
        assert 13.5 <= min(gaps) < 14
        assert 16 < max(gaps) <= 16.5


async def test_an_outage_is_met_with_growing_patience_and_its_end_with_the_changes_since() -> None:
    outage = [refused] * 8
    async with running(page(last=T0), *outage, page(last=T1)) as run:
        await asyncio.sleep(16)
        assert run.refresher.health.state is State.UNAVAILABLE
        assert "refused" in run.refresher.health.message
        assert run.refresher.health.since == 15
        await asyncio.sleep(600)

        gaps = [round(b - a, 1) for a, b in zip(run.script.times[1:], run.script.times[2:10], strict=False)]
        assert gaps == [2, 4, 8, 16, 30, 30, 30, 30]  # half of what full jitter may draw
        assert run.after(9) == run.after(1)
        assert run.refresher.health.state is State.OK
        assert run.refresher.health.message == ""


async def test_back_off_has_full_jitter_and_a_floor() -> None:
    async with running(refused, rng=random.Random(2)) as run:
        await asyncio.sleep(6000)
        gaps = [b - a for a, b in zip(run.script.times, run.script.times[1:], strict=False)][6:]
        assert min(gaps) >= refresher_module.MIN_GAP_SECONDS
        assert max(gaps) <= 60
        assert max(gaps) > 50
        assert min(gaps) < 10


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (fails(401, "Authenticate: token validation error"), State.UNAUTHORIZED),
        (fails(403, "not allowed"), State.CANNOT_LIST_ORG),
        (fails(404, "organization not found"), State.CANNOT_LIST_ORG),
        (fails(404, "404 page not found"), State.UNAVAILABLE),
        (fails(500, "internal"), State.UNAVAILABLE),
        (lambda _: httpx.Response(200, json={}), State.UNAVAILABLE),
        (lambda _: httpx.Response(200, text="<html>"), State.UNAVAILABLE),
    ],
)
async def test_why_the_list_cannot_be_had(answer: Answer, state: State) -> None:
    async with running(answer) as run:
        await asyncio.sleep(1)
        assert run.refresher.health.state is state
        assert 'org "personal"' in run.refresher.health.message
        assert run.sweeps == []


async def test_a_request_that_is_refused_is_followed_by_one_that_asks_for_everything() -> None:
    async with running(page(last=T0), fails(400, "bad updated_after"), page(last=T0)) as run:
        await asyncio.sleep(25)
        assert [run.after(i) is None for i in range(3)] == [True, False, True]


async def test_a_rate_limit_is_kept() -> None:
    async with running(fails(429, "rate limit exceeded", **{"retry-after": "45"}), page(last=T0)) as run:
        await asyncio.sleep(50)
        assert run.script.times == [0, 45]


async def test_a_kick_brings_the_next_sweep_forward() -> None:
    async with running(page(last=T0)) as run:
        await asyncio.sleep(5)
        run.refresher.kick()
        await asyncio.sleep(10)
        assert run.script.times == [0, 5]
        await asyncio.sleep(6)
        assert run.script.times == [0, 5, 20]


async def test_many_kicks_are_rate_bounded_and_none_is_lost() -> None:
    async with running(page(last=T0), seconds=0.5) as run:
        for _ in range(100):
            run.refresher.kick()
            await asyncio.sleep(0.1)
        await asyncio.sleep(2)
        gaps = [b - a for a, b in zip(run.script.times, run.script.times[1:], strict=False)]
        assert min(gaps) >= refresher_module.MIN_GAP_SECONDS
        assert run.script.times[-1] >= 9.9  # after the last kick


async def test_kicks_do_not_shorten_the_back_off() -> None:
    async with running(refused) as run:
        await asyncio.sleep(6.5)
        for _ in range(70):
            run.refresher.kick()
            await asyncio.sleep(0.1)
        assert run.script.times == [0, 2, 6]


async def test_a_replaced_credential_is_tried_at_once() -> None:
    async with running(fails(401, "Authenticate: token validation error")) as run:
        await asyncio.sleep(8)
        run.script.answers = [page(last=T0)]
        run.refresher.kick()
        await asyncio.sleep(0.1)
        assert run.script.times == [0, 2, 6, 8]
        assert run.refresher.health.state is State.OK


async def test_a_defect_in_a_reader_is_counted_logged_once_and_survived(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Sweep] = []

    def reader(sweep: Sweep) -> None:
        seen.append(sweep)
        if len(seen) <= 3:
            raise KeyError("a defect")

    async with running(page(row(1, T0), last=T0), on_rows=reader) as run:
        await asyncio.sleep(9)
        assert run.refresher.unexpected_errors == 3
        assert "KeyError" in run.refresher.health.message
        await asyncio.sleep(15)
        assert run.refresher.health.state is State.OK
        assert [sweep.full for sweep in seen[:4]] == [True] * 4  # what a reader did not take is told again
    assert capsys.readouterr().out.count("stumbled") == 1


async def test_it_does_nothing_between_sweeps() -> None:
    async with running(page(last=T0), period=15) as run:
        loop = asyncio.get_running_loop()
        steps = 0
        original = loop.call_soon

        def counting(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            return original(*args, **kwargs)

        await asyncio.sleep(1)
        loop.call_soon = counting  # type: ignore[method-assign]
        await asyncio.sleep(13)
        assert steps <= 3
        assert run.script.times == [0]


async def test_a_row_with_hostile_times_does_not_end_it() -> None:
    hostile = [row(1, "0001-01-01T00:00:00+23:59"), row(2, "9999-12-31T23:59:59-23:59"), row(3, "x" * 1000)]
    async with running(page(*hostile, last="9999-12-31T23:59:59.999-12:00"), page(last=T0)) as run:
        await asyncio.sleep(31)
        assert run.refresher.unexpected_errors == 0
        assert len(run.sweeps) == 3
        assert json.dumps([sweep.full for sweep in run.sweeps]) == "[true, true, false]"


# --- Volumes ---------------------------------------------------------------------------------------------------------


async def test_volumes_are_listed_in_the_same_way_and_more_slowly() -> None:
    async with running(page(last=T0), volume_period=60, overlap=60) as run:
        run.script.volumes = [volume_page("vol_1", last=T0), volume_page("vol_2", last=T1), volume_page()]
        await asyncio.sleep(121)

        assert [at for at, _ in run.script.asked_volumes] == [0, 60, 120]
        told = [(sweep.full, [volume.id for volume in sweep.rows]) for sweep in run.volumes]
        assert told == [(True, ["vol_1"]), (False, ["vol_2"]), (False, [])]
        assert run.script.asked_volumes[0][1] == {"limit": "1000", "include_deleted": "false"}
        assert run.script.asked_volumes[1][1]["updated_after"] == "2026-11-01T09:59:00.000Z"
        assert run.script.asked_volumes[1][1]["include_deleted"] == "true"
        assert len(run.script.asked) == 9


async def test_without_a_time_of_the_list_its_volumes_tell() -> None:
    body = {"volumes": [{**VOLUME, "app_name": "x", "updated_at": T1}], "next_cursor": ""}
    async with running(page(last=T0), volume_period=5, overlap=0) as run:
        run.script.volumes = [lambda _: httpx.Response(200, json=body)]
        await asyncio.sleep(6)
        assert run.script.asked_volumes[1][1]["updated_after"] == "2026-11-01T10:20:00.123Z"


async def test_volumes_that_cannot_be_listed_leave_the_machines_alone() -> None:
    async with running(page(last=T0)) as run:
        run.script.volumes = [fails(500, "internal")]
        await asyncio.sleep(61)
        assert run.refresher.health.state is State.OK
        assert (len(run.sweeps), run.volumes) == (5, [])


async def test_a_kick_asks_for_volumes_too() -> None:
    async with running(page(last=T0)) as run:
        await asyncio.sleep(5)
        run.refresher.kick()
        await asyncio.sleep(0.1)
        assert [at for at, _ in run.script.asked_volumes] == [0, 5]


# --- App by app ------------------------------------------------------------------------------------------------------

NOT_ALLOWED = fails(403, "not allowed")


def apps(count: int) -> Callable[[], list[str]]:
    return lambda: [f"ag-{n:03}" for n in range(count)]


def machine_calls(run: Run) -> list[tuple[float, str]]:
    return [(at, what.removeprefix("machines of ")) for at, what in run.script.asked_apps if "machines" in what]


async def test_where_the_org_cannot_be_listed_each_app_is_and_a_sentence_says_so() -> None:
    async with running(NOT_ALLOWED, apps=apps(3)) as run:
        await asyncio.sleep(17.1)

        assert machine_calls(run) == [(2, "ag-000"), (7, "ag-001"), (12, "ag-002"), (17, "ag-000")]
        told = [(sweep.full, sweep.apps, [(row.app, row.id) for row in sweep.rows]) for sweep in run.sweeps]
        assert told[:2] == [
            (True, {"ag-000"}, [("ag-000", "e-ag-000")]),
            (True, {"ag-001"}, [("ag-001", "e-ag-001")]),
        ]
        health = run.refresher.health
        assert (health.state, health.since) == (State.CANNOT_LIST_ORG, 0)
        assert health.message == (
            'machines of org "personal" can\'t be listed: not allowed. Each app is listed by itself, which takes more '
            "calls and tells changes later; a token of the whole org makes it one list: fly tokens create org --org "
            '"personal"'
        )


async def test_volumes_are_listed_app_by_app_at_their_own_pace() -> None:
    async with running(page(last=T0), apps=apps(2), volume_period=60) as run:
        run.script.volumes = [fails(404, "organization not found")]
        run.script.apps = {"ag-001": lambda _: httpx.Response(200, json=[VOLUME])}
        await asyncio.sleep(61)
        assert [call for call in run.script.asked_apps if call[0] <= 61] == [
            (2, "volumes of ag-000"),
            (32, "volumes of ag-001"),
        ]
        assert [(sweep.apps, [v.app for v in sweep.rows]) for sweep in run.volumes] == [
            ({"ag-000"}, []),
            ({"ag-001"}, ["ag-001"]),
        ]
        assert run.refresher.health.state is State.OK


async def test_many_apps_are_spread_over_the_period_and_within_the_rate() -> None:
    async with running(NOT_ALLOWED, apps=apps(60), volume_period=6000) as few:
        await asyncio.sleep(16.9)
        assert sorted(name for _, name in machine_calls(few)) == apps(60)()
        assert max(len(sweep.apps or ()) for sweep in few.sweeps) == 8
    async with running(NOT_ALLOWED, apps=apps(600), volume_period=6000) as many:
        await asyncio.sleep(2 + 59)
        assert len(machine_calls(many)) == 600
        assert max(len(sweep.apps or ()) for sweep in many.sweeps) == 20


async def test_an_app_that_cannot_be_listed_is_left_out_and_holds_up_no_other() -> None:
    async with running(NOT_ALLOWED, apps=apps(30), volume_period=6000) as run:
        run.script.apps = {
            "ag-000": fails(404, "app not found"),
            "ag-001": fails(500, "internal"),
            "ag-002": fails(403, "not allowed"),
            "ag-003": lambda _: httpx.Response(200, json=[]),
        }
        await asyncio.sleep(16.9)
        spoken = {name for sweep in run.sweeps for name in sweep.apps or ()}
        assert spoken == set(apps(30)()) - {"ag-000", "ag-001", "ag-002"}
        assert run.refresher.health.state is State.CANNOT_LIST_ORG


async def test_an_outage_while_listing_app_by_app_is_met_with_growing_patience() -> None:
    async with running(NOT_ALLOWED, apps=apps(1), volume_period=6000) as run:
        await asyncio.sleep(3)
        run.script.apps = {"ag-000": fails(500, "internal")}
        await asyncio.sleep(30)
        assert [at for at, _ in machine_calls(run)] == [2, 17, 19, 23, 31]
        assert run.refresher.health.state is State.UNAVAILABLE

        run.script.apps = {}
        await asyncio.sleep(15)
        assert run.refresher.health.state is State.CANNOT_LIST_ORG
        assert "not allowed" in run.refresher.health.message


async def test_a_token_that_is_refused_for_an_app_is_asked_of_the_org_which_tells() -> None:
    async with running(NOT_ALLOWED, apps=apps(1), volume_period=6000) as run:
        await asyncio.sleep(3)
        run.script.apps = {"ag-000": fails(401, "abroad")}
        await asyncio.sleep(17)
        assert run.script.times == [0, 19]
        assert run.refresher.health.state is State.CANNOT_LIST_ORG

        run.script.answers = [fails(401, "Authenticate: token validation error")]
        await asyncio.sleep(15)
        assert run.refresher.health.state is State.UNAUTHORIZED


async def test_the_org_is_tried_again_every_ten_minutes_and_then_listed_in_full() -> None:
    async with running(page(last=T0), NOT_ALLOWED, apps=apps(1), full_every=6000) as run:
        await asyncio.sleep(610)
        assert run.script.times == [0, 15, 17]
        run.script.answers = [page(row(1, T0), last=T0)]
        await asyncio.sleep(20)

        assert run.script.times[3] <= 17 + refresher_module.ORG_AGAIN_SECONDS + 15
        assert (run.sweeps[-1].full, run.sweeps[-1].apps) == (True, None)
        assert run.refresher.health.state is State.OK
        calls = len(run.script.asked_apps)
        await asyncio.sleep(30)
        assert len(run.script.asked_apps) == calls  # no app is asked any more


async def test_one_odd_refusal_of_an_org_that_could_be_listed_is_not_believed() -> None:
    async with running(page(last=T0), NOT_ALLOWED, page(last=T0), apps=apps(1), full_every=6000) as run:
        await asyncio.sleep(100)
        assert run.script.asked_apps == []
        assert run.refresher.health.state is State.OK


async def test_without_an_app_of_interest_nothing_is_asked() -> None:
    async with running(NOT_ALLOWED, volume_period=6000) as run:
        await asyncio.sleep(300)
        assert (run.script.asked_apps, run.sweeps) == ([], [])
        assert run.refresher.health.state is State.CANNOT_LIST_ORG
