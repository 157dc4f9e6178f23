"""The settings file: what is left out has a default, what is wrong is said so that it can be put right."""

from pathlib import Path

import pytest
import yaml

from roost import settings
from roost.settings import BadSettings, Settings, load

BASE = Path(__file__).parents[3] / "manifests/base/settings.yaml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "operator.yaml"


def test_without_a_file_everything_has_its_default() -> None:
    assert load(None) == Settings()


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "{}", "fly:\n  # org: mine\n"])
def test_an_empty_file_leaves_everything_at_its_default(file: Path, text: str) -> None:
    file.write_text(text)
    assert load(file) == Settings()


def test_what_is_given_counts_and_the_rest_stays(file: Path) -> None:
    file.write_text("fly: {org: acme}\ninFlight: 8\nsecretPollSeconds: 2.5\n")
    found = load(file)
    assert (found.fly.org, found.in_flight, found.secret_poll_seconds) == ("acme", 8, 2.5)
    assert found.fly.base_url == Settings().fly.base_url


def test_the_file_that_the_manifests_bring_is_good_and_says_what_the_defaults_are(file: Path) -> None:
    file.write_text(yaml.safe_load(BASE.read_text())["data"]["operator.yaml"])
    assert load(file) == Settings()


@pytest.mark.parametrize(
    ("text", "field", "value", "why"),
    [
        ("inFlight: 0", "inFlight", "0", "greater than or equal to 1"),
        ("inFlight: many", "inFlight", "'many'", "valid integer"),
        ("inFlght: 3", "inFlght", "3", "there is no such setting"),
        ("fly: {org: 5}", "fly.org", "5", "valid string"),
        ("fly: {refreshSeconds: 0}", "fly.refreshSeconds", "0", "greater than 0"),
        ("fly: {refreshSeconds: .nan}", "fly.refreshSeconds", "nan", "finite number"),
        ("fly: {credentials: {main: {secret: x}}}", "fly.credentials.main.secret", "'x'", "there is no such setting"),
        ("fly: {credentials: {}}", "fly.credentials", "{}", "at least 1 item"),
        ("defaults: {regions: []}", "defaults.regions", "[]", "at least 1 item"),
        ("fly: {refreshSeconds: .inf}", "fly.refreshSeconds", "inf", "finite number"),
        ("metrics: {listen: ':99999'}", "metrics.listen", "':99999'", "at most 65535"),
        ("fly: {baseUrl: api.machines.dev}", "fly.baseUrl", "'api.machines.dev'", "https?"),
        ("defaults: {regions: iad}", "defaults.regions", "'iad'", "valid tuple"),
        ("endpoint: {listen: nowhere}", "endpoint.listen", "'nowhere'", "match pattern"),
        ("endpoint: {publicUrl: 'https://x/path'}", "endpoint.publicUrl", "'https://x/path'", "match pattern"),
        ("endpoint: {tls: {}}", "endpoint", "{'tls': {}}", "publicUrl must be https://"),
        ("endpoint: {tls: {secretName: A B}}", "endpoint.tls.secretName", "'A B'", "match pattern"),
        ("endpoint: {limits: {connections: 5}}", "endpoint.limits.connections", "5", "greater than or equal to 100"),
        ("logLevel: loud", "logLevel", "'loud'", "debug|info|warning|error"),
    ],
)
def test_a_bad_value_is_named_with_file_field_value_and_what_it_must_be(
    file: Path, text: str, field: str, value: str, why: str
) -> None:
    file.write_text(text)
    with pytest.raises(BadSettings) as caught:
        load(file)
    said = str(caught.value)
    assert said.startswith(f"settings file {file}: {field}: ")
    assert why in said
    assert value in said


def test_all_that_is_wrong_is_said_at_once(file: Path) -> None:
    file.write_text("inFlight: 0\nlogLevel: loud\nfly: {refreshSeconds: -1}\n")
    with pytest.raises(BadSettings) as caught:
        load(file)
    assert all(field in str(caught.value) for field in ("inFlight", "logLevel", "fly.refreshSeconds"))


def test_a_long_value_is_not_poured_out(file: Path) -> None:
    file.write_text(f"logLevel: {'x' * 5000}")
    with pytest.raises(BadSettings) as caught:
        load(file)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["[1, 2]", "just text", "42"])
def test_a_file_that_holds_no_keys_is_refused(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(BadSettings, match=str(file)):
        load(file)


def test_a_file_that_is_no_yaml_is_said_with_the_line(file: Path) -> None:
    file.write_text("fly:\n  org: a: b\n")
    with pytest.raises(BadSettings, match=r"is not YAML: .*\n.*line 2"):
        load(file)


def test_a_file_that_is_missing_is_said_with_the_remedy(file: Path) -> None:
    with pytest.raises(BadSettings) as caught:
        load(file)
    assert str(caught.value) == f"settings file {file}: No such file or directory; give another with --config"


def test_a_file_that_is_no_text_is_said(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(BadSettings, match="is not UTF-8 text"):
        load(file)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="directory"):
        load(tmp_path)


def test_settings_hold_names_of_secrets_and_never_a_secret() -> None:
    """The file is a ConfigMap, which many may read."""
    names = {f for block in vars(settings).values() for f in getattr(block, "model_fields", {})}
    assert "secret_name" in names
    assert not {n for n in names if n in ("token", "password", "api_token", "value")}
