"""What the programs of the stack are given: free ports, an environment that leads nowhere else, files they can read."""

import datetime
import json
import socket
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from roost.local import credentials, recipes
from roost.local.recipes import Layout, Ports
from roost.local.stack import Stack, StackError
from roost.settings import load


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def test_ports_are_free_and_nobody_elses() -> None:
    with Ports.reserved() as ports, Ports.reserved() as others:
        chosen = [getattr(each, name) for each in (ports, others) for name in Ports.__slots__]
        assert len(set(chosen)) == 2 * len(Ports.__slots__)
        for port in chosen:
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"http://127.0.0.1:{port}", trust_env=False)


def test_a_block_with_a_listener_or_a_holder_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with Ports.reserved() as free:
        first = free.etcd
        monkeypatch.setattr(recipes, "_BLOCKS", range(first, first + 10, 10))
        with pytest.raises(OSError, match="no ten free ports"), Ports.reserved():
            pass
    with socket.create_server(("127.0.0.1", first + 9)), pytest.raises(OSError, match="no ten"), Ports.reserved():
        pass
    with Ports.reserved() as again:
        assert again == free


def test_the_operator_can_only_be_its_service_account(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBECONFIG", "http_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "elsewhere")
    recipe = recipes.operator(layout, Ports(1, 2, 3, 4, 5, 6, 7, 8))
    assert "elsewhere" not in recipe.env.values()
    assert recipe.env["KUBERNETES_SERVICE_HOST"] == "127.0.0.1"
    assert recipe.env["KUBERNETES_SERVICE_PORT"] == "3"
    assert recipe.env["ROOST_SERVICE_ACCOUNT_DIR"] == str(layout.service_account)
    assert recipe.ready_url == "http://127.0.0.1:7/readyz"
    assert recipe.argv == (sys.executable, "-m", "roost.cli", "run", "--config", str(layout.settings))


def test_the_settings_are_ones_the_operator_takes(layout: Layout) -> None:
    made = credentials.make(layout.credentials, now=datetime.datetime.now(datetime.UTC))
    recipes.write_files(layout, Ports(1, 2, 3, 4, 5, 6, 7, 8), made)
    settings = load(layout.settings)
    assert settings.endpoint.listen == "127.0.0.1:6"
    assert settings.endpoint.public_url == "http://127.0.0.1:6"
    assert settings.metrics.listen == "127.0.0.1:7"
    assert settings.fly.base_url == "http://127.0.0.1:5"
    assert settings.fly.credentials["default"].secret_name == recipes.FLY_SECRET
    assert settings.defaults.image in json.loads(layout.images.read_text())["images"]
    assert yaml.safe_load(layout.kubeconfig.read_text())["users"][0]["user"]["token"] == made.admin_token
    assert made.admin_token not in (layout.credentials / "controller-manager.kubeconfig").read_text()


def test_machines_find_openclaw_where_it_was_installed_and_only_there(layout: Layout) -> None:
    made, ports = credentials.make(layout.credentials, now=datetime.datetime.now(datetime.UTC)), range(1, 9)
    found = []
    for where in (None, Path("/opt")):
        recipes.write_files(layout, Ports(*ports), made, where)
        env = json.loads(layout.images.read_text())["images"][recipes.AGENT_IMAGE]["env"]
        found.append((env.get("ROOST_OPENCLAW_DIR"), env.get("ROOST_NODE")))
    assert found == [(None, None), ("/opt/openclaw", "/opt/node/bin/node")]


def test_only_what_a_start_makes_is_ever_removed(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for name in ("audit.jsonl", "audit-2026-11-21T08-00-00.000.jsonl", "notes.txt"):
        (tmp_path / name).touch()
    removable = {path.name for path in layout.all_made()}
    assert {"audit.jsonl", "audit-2026-11-21T08-00-00.000.jsonl", "etcd", "fly", "logs"} <= removable
    assert "notes.txt" not in removable


@pytest.mark.parametrize("record", ["", "[1]", '{"facts": {}, "children": [], "owner": null}'])
def test_a_record_of_another_version_is_not_guessed_at(tmp_path: Path, record: str) -> None:
    (tmp_path / "processes.json").write_text(record)
    for action in (Stack(tmp_path).up, Stack(tmp_path).down, Stack(tmp_path).status):
        with pytest.raises(StackError, match="end the processes whose pids it names"):
            action()
    assert (tmp_path / "processes.json").exists()
