"""The small parts by themselves: durations, ids, regions, image references, state directories."""

import random
import re
from pathlib import Path

import pytest

from flysim import clock, regions
from flysim.clock import Clock
from flysim.errors import Refusal
from flysim.ids import Ids
from flysim.images import Images
from flysim.process import StateDirectory
from flysim.records import image_ref


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("5s", 5), ("1m30s", 90), ("250ms", 0.25), ("1.5h", 5400), ("0", 0), ("10", None), ("", None), ("5 s", None)],
)
def test_durations_are_written_as_in_go(written: str, seconds: float | None) -> None:
    assert clock.go_duration(written) == seconds


def test_times_are_written_as_fly_writes_them() -> None:
    assert clock.rfc3339(1_700_000_000.987) == "2023-11-14T22:13:20Z"
    assert clock.rfc3339_fine(1_700_000_000.9876) == "2023-11-14T22:13:20.987Z"
    assert clock.parse_rfc3339("2023-11-14T22:13:20.987Z") == pytest.approx(1_700_000_000.987)
    assert clock.parse_rfc3339("2023-11-14T23:13:20+01:00") == 1_700_000_000
    assert clock.parse_rfc3339("2023-11-14T22:13:20") is None, "a time of nowhere"


async def test_ids_have_fly_s_forms_and_ulids_only_grow() -> None:
    ids = Ids(random.Random(1), Clock(1_800_000_000))
    ulids = [ids.ulid() for _ in range(500)]
    assert ulids == sorted(set(ulids))
    assert all(re.fullmatch(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", ulid) for ulid in ulids)
    assert re.fullmatch(r"[0-9a-f]{14}", ids.machine())
    assert re.fullmatch(r"vol_[0-9a-z]{16}", ids.volume())
    addresses: set[str] = set()
    for _ in range(300):
        addresses.add(ids.address(addresses))
    assert len(addresses) == 300
    assert all(re.fullmatch(r"127(\.\d+){3}", address) and not address.startswith("127.0.") for address in addresses)


def test_every_alias_leads_to_regions_that_there_are() -> None:
    for alias in ("apac", "eu", "na", "sa", "us", "usa", "any"):
        assert regions.resolve(alias)
        assert set(regions.resolve(alias)) <= regions.REGIONS.keys()
    assert regions.resolve("ord,eu,ams")[:2] == ["ord", "ams"]
    assert len(regions.resolve("any,eu")) == 18
    for bad in ("xyz", "ams,", "ams,xyz"):
        with pytest.raises(Refusal):
            regions.resolve(bad)


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("alpine", ("registry-1.docker.io", "library/alpine", "latest", None)),
        ("roost/agent:0.1.0", ("registry-1.docker.io", "roost/agent", "0.1.0", None)),
        ("registry.fly.io/app:tag", ("registry.fly.io", "library/app", "tag", None)),
        ("localhost:5000/a/b@sha256:ab", ("localhost:5000", "a/b", "", "sha256:ab")),
    ],
)
def test_image_references_in_parts(image: str, parts: tuple[str, str, str, str | None]) -> None:
    ref = image_ref(image, Images().resolve(image)[0])
    assert (ref["registry"], ref["repository"], ref["tag"]) == parts[:3]
    assert ref["digest"] == parts[3] if parts[3] else re.fullmatch(r"sha256:[0-9a-f]{64}", ref["digest"])


def test_a_state_directory_is_one_simulator_s_alone(tmp_path: Path) -> None:
    first = StateDirectory(tmp_path / "state")
    with pytest.raises(BlockingIOError):
        StateDirectory(tmp_path / "state")
    (first.machines / "left").mkdir()
    first.ledger.write_text("left")
    first.release()
    second = StateDirectory(tmp_path / "state")
    assert list(second.machines.iterdir()) == []
    assert not second.ledger.exists()
    second.release()


def test_a_directory_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "machines").mkdir()
    (tmp_path / "machines" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError):
        StateDirectory(tmp_path)
    assert (tmp_path / "machines" / "thesis.txt").exists()
