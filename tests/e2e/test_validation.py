"""What a person meets at `kubectl apply`, word for word, from the real API server.

A refusal is written as kubectl prints it after `The Agent "x" is invalid:`, one line a cause.
"""

import copy
import json
import secrets
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import given, settings

import agent_specs
from roost.api import crd
from roost.api.agent import AgentSpec, AgentStatus, parse_agent_spec, parse_agent_status
from roost.api.fleet import FleetStatus, parse_fleet_status
from roost.api.secret import SecretStatus, parse_secret_status
from roost.local import binaries
from roost.local.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = {"kind": "Command", "command": ["sh"]}
OPENCLAW = {"kind": "OpenClaw", "version": "2026.9.6"}
KEY = {"name": "s", "key": "k"}
SKIPPED = (
    "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation"
)
STAYS = "what exists at Fly can't move; apply it under another name"
Body = dict[str, Any]


class Api:
    """The API server, seen from one namespace."""

    def __init__(self, http: httpx.Client, kubectl: str, kubeconfig: Path, namespace: str) -> None:
        self.http, self.namespace = http, namespace
        self._kubectl = [kubectl, f"--kubeconfig={kubeconfig}", f"--namespace={namespace}"]

    def path(self, kind: str, name: str = "") -> str:
        return f"/apis/roost.dev/v1alpha1/namespaces/{self.namespace}/{kind.lower()}s/{name}".rstrip("/")

    def create(self, kind: str, name: str, spec: Body, *, dry: bool = False) -> httpx.Response:
        params = {"fieldValidation": "Strict"} | ({"dryRun": "All"} if dry else {})
        return self.http.post(self.path(kind), params=params, json=manifest(kind, name, spec))

    def replace(self, kind: str, name: str, spec: Body) -> httpx.Response:
        """What `kubectl replace` does: fields that are left out are taken away."""
        found = self.get(kind, name)
        return self.http.put(self.path(kind, name), json=found | {"spec": spec})

    def apply(self, kind: str, name: str, spec: Body) -> httpx.Response:
        """Server-side apply, as Flux does."""
        return self.http.patch(
            self.path(kind, name),
            params={"fieldManager": "flux", "fieldValidation": "Strict"},
            headers={"Content-Type": "application/apply-patch+yaml"},
            content=json.dumps(manifest(kind, name, spec)),
        )

    def write_status(self, kind: str, name: str, status: Body) -> httpx.Response:
        return self.http.patch(
            f"{self.path(kind, name)}/status",
            params={"fieldManager": "roost", "fieldValidation": "Strict"},
            headers={"Content-Type": "application/merge-patch+json"},
            content=json.dumps({"status": status}),
        )

    def get(self, kind: str, name: str) -> Body:
        found: Body = self.http.get(self.path(kind, name)).raise_for_status().json()
        return found

    def kubectl(self, *arguments: str, stdin: Body | None = None) -> tuple[int, str, str]:
        given = json.dumps(stdin) if stdin is not None else None
        done = subprocess.run(
            [*self._kubectl, *arguments], check=False, input=given, capture_output=True, text=True, timeout=30
        )
        return done.returncode, done.stdout, done.stderr


def manifest(kind: str, name: str, spec: Body) -> Body:
    return {"apiVersion": "roost.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def agent(**blocks: Any) -> Body:
    return {"runtime": RUNTIME} | blocks


def fleet(**blocks: Any) -> Body:
    return {"template": {"spec": agent(**blocks)}}


def refusal(answer: httpx.Response) -> list[str]:
    """The causes as kubectl prints them, line by line; sorted, because the API server's order changes."""
    assert answer.status_code == 422, answer.text
    return sorted(f"{cause['field']}: {cause['message']}" for cause in answer.json()["details"]["causes"])


@pytest.fixture(scope="module")
def api(control_plane: Stack) -> Iterator[Api]:
    access = control_plane.admin
    with httpx.Client(
        base_url=access.server,
        headers={"Authorization": f"Bearer {access.token}"},
        verify=ssl.create_default_context(cafile=str(access.ca_file)),
        timeout=30,
    ) as http:
        http.post("/api/v1/namespaces", json={"metadata": {"name": "validation"}}).raise_for_status()
        yield Api(http, str(binaries.find(say=print).kubectl), control_plane.kubeconfig, "validation")


@pytest.fixture
def name() -> str:
    """A name of its own for the test's object."""
    return f"t-{secrets.token_hex(4)}"


# --- Refused when it is made. -----------------------------------------------------------------------------------

CHANNELS: dict[str, Body] = {
    "telegram": {"tokenFrom": KEY},
    "discord": {"tokenFrom": KEY},
    "slack": {"botTokenFrom": KEY, "appTokenFrom": KEY},
    "whatsapp": {},
}
REFUSED_AGENTS: list[tuple[str, Body, list[str]]] = [
    ("runtime-missing", {}, ["spec.runtime: Required value", SKIPPED]),
    ("kind-missing", {"runtime": {}}, ["spec.runtime.kind: Required value", SKIPPED]),
    (
        "kind-unknown",
        {"runtime": {"kind": "Docker"}},
        ['spec.runtime.kind: Unsupported value: "Docker": supported values: "OpenClaw", "Command"', SKIPPED],
    ),
    (
        "command-missing",
        {"runtime": {"kind": "Command"}},
        [
            "spec.runtime.command: Invalid value: command is empty: with kind Command, give the program and its "
            'arguments, for example ["python3", "-m", "http.server"]'
        ],
    ),
    (
        "command-of-nothing",
        {"runtime": {"kind": "Command", "command": [""]}},
        [
            "spec.runtime.command: Invalid value: command is empty: with kind Command, give the program and its "
            'arguments, for example ["python3", "-m", "http.server"]'
        ],
    ),
    (
        "command-too-long",
        {"runtime": {"kind": "Command", "command": ["x"] * 65}},
        ["spec.runtime.command: Too many: 65: must have at most 64 items", SKIPPED],
    ),
    (
        "argument-with-nul",
        {"runtime": {"kind": "Command", "command": ["a\0b"]}},
        [
            'spec.runtime.command[0]: Invalid value: "a\\x00b": spec.runtime.command[0] in body should match '
            "'^[^\\x00]*$'"
        ],
    ),
    (
        "version",
        {"runtime": RUNTIME | {"version": "1 2"}},
        [
            'spec.runtime.version: Invalid value: "1 2": must be letters, digits, dots, dashes, pluses and '
            "underscores, such as 1.4.2"
        ],
    ),
    (
        "openclaw-without-a-version",
        {"runtime": {"kind": "OpenClaw"}},
        [
            "spec.runtime.version: Invalid value: version is missing: with kind OpenClaw, name the version to run, "
            "such as 2026.9.6"
        ],
    ),
    *(
        (
            f"openclaw-{version}",
            {"runtime": {"kind": "OpenClaw", "version": version}},
            [
                f"spec.runtime.version: Invalid value: version {version} is no version of OpenClaw: use an exact one, "
                "such as 2026.9.6"
            ],
        )
        for version in ("latest", "2026.9", "2026.9.6+b")
    ),
    (
        "openclaw-with-a-command",
        {"runtime": OPENCLAW | {"command": ["sh"]}},
        [
            "spec.runtime.command: Invalid value: command does not go with kind OpenClaw, which is started by its "
            "version: leave it out, or use kind Command"
        ],
    ),
    (
        "command-with-a-config",
        {"runtime": RUNTIME | {"config": {"a": {}}}},
        [
            "spec.runtime.config: Invalid value: config does not go with kind Command, since it is a part of "
            "openclaw.json: leave it out, or use kind OpenClaw"
        ],
    ),
    (
        "config-is-no-object",
        {"runtime": OPENCLAW | {"config": "{}"}},
        [
            'spec.runtime.config: Invalid value: "string": spec.runtime.config in body must be of type object: '
            '"string"',
            SKIPPED,
        ],
    ),
    (
        "config-too-large",
        {"runtime": OPENCLAW | {"config": {f"k{n}": 1 for n in range(65)}}},
        ["spec.runtime.config: Too many: 65: must have at most 64 items", SKIPPED],
    ),
    (
        "bootstrap",
        agent(identity={"bootstrap": "Oidc"}),
        ['spec.identity.bootstrap: Unsupported value: "Oidc": supported values: "Token", "FlyOidc"', SKIPPED],
    ),
    ("model-without-a-default", agent(model={}), ["spec.model.default: Required value", SKIPPED]),
    (
        "model",
        agent(model={"default": "gpt-5", "fallbacks": ["openai/gpt 5"], "thinking": "hard"}),
        [
            *(
                f"spec.model.{at}: Invalid value: \"{name}\": must be a provider's id and a model's name with a slash "
                "between, such as anthropic/claude-sonnet-4-6"
                for at, name in (("default", "gpt-5"), ("fallbacks[0]", "openai/gpt 5"))
            ),
            'spec.model.thinking: Invalid value: "hard": must be one of off, minimal, low, medium, high, xhigh, '
            "adaptive, max, ultra",
        ],
    ),
    (
        "fallbacks-too-many",
        agent(model={"default": "a/b", "fallbacks": ["a/b"] * 17}),
        ["spec.model.fallbacks: Too many: 17: must have at most 16 items", SKIPPED],
    ),
    (
        "provider-of-nothing",
        agent(providers=[{"id": "openai"}]),
        [
            "spec.providers[0]: Invalid value: provider openai says nothing: give apiKeyFrom, baseUrl or both, or "
            "leave it out"
        ],
    ),
    (
        "provider-twice",
        agent(providers=[{"id": "a", "apiKeyFrom": KEY}, {"id": "a", "baseUrl": "http://a"}]),
        ['spec.providers[1]: Duplicate value: {"id":"a"}'],
    ),
    (
        "provider-words",
        agent(providers=[{"id": "Open AI", "apiKeyFrom": KEY, "api": "Chat"}]),
        [
            'spec.providers[0].id: Invalid value: "Open AI": must be a provider\'s id: lower-case letters, digits, '
            "dots, dashes and underscores",
            'spec.providers[0].api: Invalid value: "Chat": must be a protocol in the runtime\'s words, such as '
            "openai-completions or anthropic-messages",
        ],
    ),
    *(
        (
            f"provider-url-{index}",
            agent(providers=[{"id": "a", "baseUrl": url}]),
            [
                f'spec.providers[0].baseUrl: Invalid value: "{url}": must be a URL of http or https without user and '
                "password, such as https://api.example.com/v1"
            ],
        )
        for index, url in enumerate(["", "a.example", "ftp://a", "https://", "https://u:p@a/v1", "https://a/v 1"])
    ),
    (
        "reference-kind",
        agent(providers=[{"id": "a", "apiKeyFrom": KEY | {"kind": "ConfigMap"}}]),
        [
            'spec.providers[0].apiKeyFrom.kind: Unsupported value: "ConfigMap": supported values: "Secret", '
            '"CoreSecret"',
            SKIPPED,
        ],
    ),
    *(
        (
            f"open-{channel}",
            agent(channels={channel: tokens | {"dmPolicy": "Open", "allowFrom": ["123"]}}),
            [
                f'spec.channels.{channel}.allowFrom: Invalid value: dmPolicy Open needs "*" in allowFrom, so that it '
                "is said twice that everybody may write: add it, or use Pairing or Allowlist"
            ],
        )
        for channel, tokens in CHANNELS.items()
    ),
    *(
        (
            f"allowlist-{channel}",
            agent(channels={channel: tokens | {"dmPolicy": "Allowlist"}}),
            [
                f"spec.channels.{channel}.allowFrom: Invalid value: dmPolicy Allowlist with an empty allowFrom hears "
                "nobody: add those who may write, or use Pairing or Disabled"
            ],
        )
        for channel, tokens in CHANNELS.items()
    ),
    (
        "channels-without-tokens",
        agent(channels={"telegram": {}, "discord": {}, "slack": {}}),
        [
            "spec.channels.telegram.tokenFrom: Required value",
            "spec.channels.discord.tokenFrom: Required value",
            "spec.channels.slack.botTokenFrom: Required value",
            "spec.channels.slack.appTokenFrom: Required value",
            SKIPPED,
        ],
    ),
    (
        "dm-policy-in-openclaw's-words",
        agent(channels={"whatsapp": {"dmPolicy": "pairing"}}),
        [
            'spec.channels.whatsapp.dmPolicy: Unsupported value: "pairing": supported values: "Pairing", '
            '"Allowlist", "Open", "Disabled"',
            SKIPPED,
        ],
    ),
    (
        "sender",
        agent(channels={"whatsapp": {"allowFrom": ["+1 555"]}}),
        [
            'spec.channels.whatsapp.allowFrom[0]: Invalid value: "+1 555": must be a sender\'s id without spaces, '
            'such as "123456789", "+15550100" or "*"'
        ],
    ),
    (
        "senders-too-many",
        agent(channels={"whatsapp": {"allowFrom": ["1"] * 129}}),
        ["spec.channels.whatsapp.allowFrom: Too many: 129: must have at most 128 items", SKIPPED],
    ),
    *(
        (
            f"soul-{case}",
            agent(soul=soul),
            [
                "spec.soul: Invalid value: soul needs exactly one of content and configMapRef; for neither, leave soul "
                "out"
            ],
        )
        for case, soul in (("neither", {}), ("both", {"content": "", "configMapRef": KEY}))
    ),
    *(
        (
            f"workspace-{case}",
            agent(workspace=[{"path": "AGENTS.md"} | text]),
            [
                "spec.workspace[0]: Invalid value: workspace file AGENTS.md needs exactly one of content and "
                "configMapRef"
            ],
        )
        for case, text in (("neither", {}), ("both", {"content": "", "configMapRef": KEY}))
    ),
    (
        "workspace-reference",
        agent(workspace=[{"path": "A", "configMapRef": {"name": "No", "key": "a/b"}}]),
        [
            'spec.workspace[0].configMapRef.key: Invalid value: "a/b": must be a key of a ConfigMap: letters, digits, '
            "dashes, dots and underscores",
            'spec.workspace[0].configMapRef.name: Invalid value: "No": must be the name of an object: lower-case '
            "letters, digits, dashes and dots",
        ],
    ),
    (
        "workspace-twice",
        agent(workspace=[{"path": "a", "content": ""}, {"path": "a", "content": ""}]),
        ['spec.workspace[1]: Duplicate value: {"path":"a"}'],
    ),
    *(
        (
            f"workspace-path-{index}",
            agent(workspace=[{"path": path, "content": ""}]),
            [
                f'spec.workspace[0].path: Invalid value: "{path}": must be a path of plain characters relative to the '
                "workspace, without empty, . and .. parts, such as AGENTS.md"
            ],
        )
        for index, path in enumerate(["", "/etc/passwd", "..", "a/../b", "./a", "a//b", "a/"])
    ),
    *(
        (
            f"workspace-taken-{index}",
            agent(workspace=[{"path": path, "content": ""}]),
            [
                f"spec.workspace[0].path: Invalid value: path {path} lies in .roost or skills, which belong to the "
                "supervisor and to the declared skills: choose another path"
            ],
        )
        for index, path in enumerate([".roost", ".roost/a", "skills", "skills/weather/SKILL.md"])
    ),
    (
        "soul-twice",
        agent(soul={"content": ""}, workspace=[{"path": "SOUL.md", "content": ""}]),
        [
            "spec.workspace: Invalid value: workspace file SOUL.md is what soul says: leave it out, or leave soul out",
        ],
    ),
    (
        "skill-empty",
        agent(skills={"items": [{"name": "weather"}]}),
        [
            "spec.skills.items[0].version: Required value",
            "spec.skills.items[0].configMapRef: Required value",
            SKIPPED,
        ],
    ),
    (
        "skill-words",
        agent(skills={"items": [{"name": "W", "version": "1.2", "configMapRef": {"name": "w"}, "sha256": "AB"}]}),
        [
            'spec.skills.items[0].name: Invalid value: "W": must be a skill\'s name: two or more lower-case letters, '
            "digits, dashes and underscores",
            'spec.skills.items[0].version: Invalid value: "1.2": must be a semantic version such as 1.2.0',
            'spec.skills.items[0].sha256: Invalid value: "AB": must be a SHA-256 checksum of 64 lower-case hex digits',
        ],
    ),
    (
        "skill-twice",
        agent(skills={"items": [{"name": "we", "version": "1.0.0", "configMapRef": {"name": "w"}}] * 2}),
        ['spec.skills.items[1]: Duplicate value: {"name":"we"}'],
    ),
    (
        "skills-policy",
        agent(skills={"policy": "Any"}),
        ['spec.skills.policy: Unsupported value: "Any": supported values: "AllowlistOnly", "Merge"', SKIPPED],
    ),
    (
        "bridge-to-nowhere",
        agent(bridge={"enabled": True, "appKey": "a"}),
        [
            "spec.bridge.enabled: Invalid value: bridge.enabled needs serviceId and serviceKeyFrom: give both, or "
            "leave enabled out",
            "spec.bridge.enabled: Invalid value: bridge.enabled needs a URL to call: give baseUrl or baseUrlMapFrom, "
            "or leave enabled out",
        ],
    ),
    (
        "bridge-words",
        agent(bridge={"baseUrl": "bridge", "serviceId": "a b", "appKey": ""}),
        [
            'spec.bridge.baseUrl: Invalid value: "bridge": must be a URL of http or https without user and password, '
            "such as https://api.example.com/v1",
            'spec.bridge.serviceId: Invalid value: "a b": must be plain characters without spaces',
            'spec.bridge.appKey: Invalid value: "": must be plain characters without spaces',
        ],
    ),
    (
        "telemetry",
        agent(telemetry={"intervalSeconds": 29, "initialDelaySeconds": 86_401}),
        [
            "spec.telemetry.intervalSeconds: Invalid value: 29: spec.telemetry.intervalSeconds in body should be "
            "greater than or equal to 30",
            "spec.telemetry.initialDelaySeconds: Invalid value: 86401: spec.telemetry.initialDelaySeconds in body "
            "should be less than or equal to 86400",
        ],
    ),
    (
        "readiness-empty",
        {"runtime": RUNTIME | {"readiness": {}}},
        ["spec.runtime.readiness.httpGet: Required value", SKIPPED],
    ),
    (
        "readiness-path",
        {"runtime": RUNTIME | {"readiness": {"httpGet": {"path": "healthz", "port": 80}}}},
        [
            'spec.runtime.readiness.httpGet.path: Invalid value: "healthz": must be a path of plain characters that '
            "starts with a slash, such as /healthz"
        ],
    ),
    (
        "desired-state",
        agent(desiredState="Off"),
        ['spec.desiredState: Unsupported value: "Off": supported values: "Running", "Stopped", "Suspended"', SKIPPED],
    ),
    (
        "suspended-too-large",
        agent(desiredState="Suspended", machine={"cpus": 2, "memoryMb": 2304}),
        [
            "spec.desiredState: Invalid value: desiredState Suspended does not go with machine.memoryMb 2304, since "
            "Fly suspends machines of at most 2048 MiB: use Stopped, or less memory"
        ],
    ),
    (
        "restarted-at",
        agent(restartedAt="a\nb"),
        ['spec.restartedAt: Invalid value: "a\\nb": must be plain characters, such as 2026-11-21T10:00:00Z'],
    ),
    (
        "display-name",
        agent(identity={"displayName": "x" * 65}),
        ["spec.identity.displayName: Too long: may not be more than 64 bytes", SKIPPED],
    ),
    (
        "shared-without-app",
        agent(fly={"appStrategy": "Shared"}),
        [
            "spec.fly.app: Invalid value: app is missing: with appStrategy Shared, name the existing Fly app in it, "
            "or use appStrategy PerAgent"
        ],
    ),
    (
        "fly-names",
        agent(fly={"app": "My_App", "org": "-o", "credential": "a b", "network": "n/1"}),
        [
            'spec.fly.app: Invalid value: "My_App": must be a Fly app name: lower-case letters, digits and dashes',
            'spec.fly.credential: Invalid value: "a b": must be the name of a credential: letters, digits and dashes',
            'spec.fly.network: Invalid value: "n/1": must be a network\'s name: letters, digits, dashes and '
            "underscores",
            'spec.fly.org: Invalid value: "-o": must be an org\'s slug: lower-case letters, digits and dashes',
        ],
    ),
    (
        "region",
        agent(placement={"regions": ["iad", "US-East"]}),
        [
            'spec.placement.regions[1]: Invalid value: "US-East": must be a Fly region\'s code or alias of '
            "lower-case letters, such as iad or eu"
        ],
    ),
    (
        "regions-too-many",
        agent(placement={"regions": ["iad"] * 17}),
        ["spec.placement.regions: Too many: 17: must have at most 16 items", SKIPPED],
    ),
    (
        "relocate",
        agent(placement={"relocate": "Always"}),
        [
            'spec.placement.relocate: Unsupported value: "Always": supported values: "Never", "OnCapacity", '
            '"OnFailure"',
            SKIPPED,
        ],
    ),
    (
        "image",
        agent(machine={"image": "a b"}),
        [
            'spec.machine.image: Invalid value: "a b": must be an image reference without spaces, such as '
            "registry.fly.io/agent@sha256:…"
        ],
    ),
    (
        "cpus",
        agent(machine={"cpus": 3}),
        [
            'spec.machine.cpus: Unsupported value: 3: supported values: "1", "2", "4", "6", "8", "10", "12", '
            '"14", "16"',
            SKIPPED,
        ],
    ),
    (
        "cpu-kind",
        agent(machine={"cpuKind": "dedicated"}),
        ['spec.machine.cpuKind: Unsupported value: "dedicated": supported values: "shared", "performance"', SKIPPED],
    ),
    (
        "cpus-beyond-shared",
        agent(machine={"cpus": 10, "memoryMb": 4096}),
        [
            "spec.machine.cpus: Invalid value: cpus 10 are too many for cpuKind shared: use at most 8, or cpuKind "
            "performance"
        ],
    ),
    (
        "memory-too-small",
        agent(machine={"memoryMb": 512}),
        [
            "spec.machine.memoryMb: Invalid value: 512: spec.machine.memoryMb in body should be greater than or equal "
            "to 1024"
        ],
    ),
    (
        "memory-step",
        agent(machine={"memoryMb": 1100}),
        ["spec.machine.memoryMb: Invalid value: 1100: spec.machine.memoryMb in body should be a multiple of 256"],
    ),
    *(
        (
            f"memory-{memory}-of-{cpus}-{kind}",
            agent(machine={"cpuKind": kind, "cpus": cpus, "memoryMb": memory}),
            [
                f"spec.machine.memoryMb: Invalid value: memoryMb {memory} does not fit cpus {cpus} of cpuKind {kind}: "
                f"use {fits}, or change cpus or cpuKind"
            ],
        )
        for kind, cpus, memory, fits in (
            ("shared", 1, 2304, "1024 to 2048"),
            ("shared", 8, 1024, "2048 to 16384"),
            ("shared", 8, 16_640, "2048 to 16384"),
            ("performance", 1, 1024, "2048 to 8192"),
            ("performance", 1, 8448, "2048 to 8192"),
            ("performance", 16, 32_512, "32768 to 131072"),
        )
    ),
    (
        "memory-too-large",
        agent(machine={"cpuKind": "performance", "cpus": 16, "memoryMb": 131_328}),
        [
            "spec.machine.memoryMb: Invalid value: 131328: spec.machine.memoryMb in body should be less than or equal "
            "to 131072",
            "spec.machine.memoryMb: Invalid value: memoryMb 131328 does not fit cpus 16 of cpuKind performance: use "
            "32768 to 131072, or change cpus or cpuKind",
        ],
    ),
    (
        "public",
        agent(machine={"public": "Yes"}),
        ['spec.machine.public: Unsupported value: "Yes": supported values: "None", "Gateway", "All"', SKIPPED],
    ),
    (
        "autostart-without-traffic",
        agent(machine={"autostart": True}),
        [
            "spec.machine.autostart: Invalid value: autostart needs public Gateway or All: without a port there is no "
            "traffic that could start it"
        ],
    ),
    *(
        (
            f"metadata-key-{index}",
            agent(machine={"metadata": {"team": "a", key: "b"}}),
            [
                f"spec.machine.metadata: Invalid value: metadata key {key} is not valid: use at most 63 letters, "
                "digits, dots, dashes and underscores, with a letter or digit at both ends"
            ],
        )
        for index, key in enumerate(["", "-a", "a.", "a b", "a/b", "k" * 64])
    ),
    *(
        (
            f"metadata-taken-{key}",
            agent(machine={"metadata": {"team": "a", key: "b"}}),
            [
                f"spec.machine.metadata: Invalid value: metadata key {key} belongs to Roost or Fly: choose one that "
                "is not process_group and does not begin with roost_, fly_ or fly-"
            ],
        )
        for key in ("roost_owner", "fly_process_group", "fly-managed-postgres", "process_group")
    ),
    (
        "metadata-value",
        agent(machine={"metadata": {"a": "", "b": "\n"}}),
        [
            'spec.machine.metadata[a]: Invalid value: "": must be plain characters, at least one; to take a key away, '
            "leave it out",
            'spec.machine.metadata[b]: Invalid value: "\\n": must be plain characters, at least one; to take a key '
            "away, leave it out",
        ],
    ),
    (
        "metadata-value-too-long",
        agent(machine={"metadata": {"a": "v" * 256}}),
        ["spec.machine.metadata.a: Too long: may not be more than 255 bytes", SKIPPED],
    ),
    (
        "metadata-too-much",
        agent(machine={"metadata": {f"k{n}": "v" for n in range(17)}}),
        ["spec.machine.metadata: Too many: 17: must have at most 16 items", SKIPPED],
    ),
    (
        "stop-timeout",
        agent(machine={"stopTimeoutSeconds": 301}),
        [
            "spec.machine.stopTimeoutSeconds: Invalid value: 301: spec.machine.stopTimeoutSeconds in body should be "
            "less than or equal to 300"
        ],
    ),
    (
        "volume-size",
        agent(volume={"sizeGb": 501}),
        ["spec.volume.sizeGb: Invalid value: 501: spec.volume.sizeGb in body should be less than or equal to 500"],
    ),
    *(
        (
            f"snapshot-retention-{days}",
            agent(volume={"snapshotRetentionDays": days}),
            [
                f"spec.volume.snapshotRetentionDays: Invalid value: {days}: spec.volume.snapshotRetentionDays in body "
                f"should be {told}"
            ],
        )
        for days, told in ((0, "greater than or equal to 1"), (61, "less than or equal to 60"))
    ),
    (
        "auto-extend-missing",
        agent(volume={"autoExtend": {}}),
        [
            "spec.volume.autoExtend.atPercent: Required value",
            "spec.volume.autoExtend.byGb: Required value",
            "spec.volume.autoExtend.limitGb: Required value",
            SKIPPED,
        ],
    ),
    (
        "auto-extend-too-little",
        agent(volume={"autoExtend": {"atPercent": 49, "byGb": 0, "limitGb": 2}}),
        [
            "spec.volume.autoExtend.atPercent: Invalid value: 49: spec.volume.autoExtend.atPercent in body should be "
            "greater than or equal to 50",
            "spec.volume.autoExtend.byGb: Invalid value: 0: spec.volume.autoExtend.byGb in body should be greater "
            "than or equal to 1",
        ],
    ),
    (
        "auto-extend-too-much",
        agent(volume={"autoExtend": {"atPercent": 100, "byGb": 101, "limitGb": 501}}),
        [
            "spec.volume.autoExtend.atPercent: Invalid value: 100: spec.volume.autoExtend.atPercent in body should be "
            "less than or equal to 99",
            "spec.volume.autoExtend.byGb: Invalid value: 101: spec.volume.autoExtend.byGb in body should be less than "
            "or equal to 100",
            "spec.volume.autoExtend.limitGb: Invalid value: 501: spec.volume.autoExtend.limitGb in body should be "
            "less than or equal to 500",
        ],
    ),
    (
        "auto-extend-without-room",
        agent(volume={"sizeGb": 5, "autoExtend": {"atPercent": 80, "byGb": 1, "limitGb": 5}}),
        [
            "spec.volume.autoExtend.limitGb: Invalid value: autoExtend.limitGb 5 must be more than sizeGb 5: raise "
            "it, or leave autoExtend out"
        ],
    ),
    (
        "on-loss",
        agent(volume={"onLoss": "Ignore"}),
        ['spec.volume.onLoss: Unsupported value: "Ignore": supported values: "Restore", "Fail", "Recreate"', SKIPPED],
    ),
    *(
        (
            f"restore-from-{case}",
            agent(volume={"restoreFrom": source}),
            [
                "spec.volume.restoreFrom: Invalid value: restoreFrom needs exactly one of snapshot and agent; for "
                "neither, leave restoreFrom out"
            ],
        )
        for case, source in (("neither", {}), ("both", {"snapshot": "vs_1", "agent": "ada"}))
    ),
    (
        "restore-from-names",
        agent(volume={"restoreFrom": {"snapshot": "vol_1"}}),
        [
            'spec.volume.restoreFrom.snapshot: Invalid value: "vol_1": must be the id of a snapshot, such as '
            "vs_0123456789abcdef"
        ],
    ),
    (
        "restore-from-agent",
        agent(volume={"restoreFrom": {"agent": "team/ada"}}),
        [
            'spec.volume.restoreFrom.agent: Invalid value: "team/ada": must be the name of an object: lower-case '
            "letters, digits, dashes and dots"
        ],
    ),
    *(
        (
            f"idle-{action}-after-{after}",
            agent(idle={"action": action, "afterSeconds": after, "allowDeaf": True}),
            [
                f"spec.idle: Invalid value: idle.action {action} with afterSeconds {after}: set both, afterSeconds to "
                "at least 60, or neither"
            ],
        )
        for action, after in (("Stop", 0), ("None", 60), ("Stop", 59))
    ),
    (
        "idle-after",
        agent(idle={"action": "Stop", "afterSeconds": 604_801, "allowDeaf": True}),
        [
            "spec.idle.afterSeconds: Invalid value: 604801: spec.idle.afterSeconds in body should be less than or "
            "equal to 604800"
        ],
    ),
    (
        "idle-action",
        agent(idle={"action": "Sleep"}),
        ['spec.idle.action: Unsupported value: "Sleep": supported values: "None", "Stop", "Suspend"', SKIPPED],
    ),
    (
        "public-in-a-shared-app",
        agent(machine={"public": "All"}, fly={"appStrategy": "Shared", "app": "everyone"}),
        [
            "spec.machine.public: Invalid value: machine.public All in a shared app: its addresses reach any machine "
            "in it, not this one; use fly.appStrategy PerAgent"
        ],
    ),
    *(
        (
            f"idle-deaf-{index}",
            agent(idle={"action": "Stop", "afterSeconds": 60}, machine=machine),
            [
                "spec.idle.action: Invalid value: idle.action Stop would make the agent deaf, since no traffic could "
                "wake it: set machine.public and machine.autostart, or accept it with idle.allowDeaf"
            ],
        )
        for index, machine in enumerate([{}, {"public": "Gateway"}])
    ),
    (
        "idle-suspend-too-large",
        agent(idle={"action": "Suspend", "afterSeconds": 60, "allowDeaf": True}, machine={"cpus": 2, "memoryMb": 4096}),
        [
            "spec.idle.action: Invalid value: idle.action Suspend does not go with machine.memoryMb 4096, since Fly "
            "suspends machines of at most 2048 MiB: use Stop, or less memory"
        ],
    ),
    (
        "recovery",
        agent(recovery={"onUnhealthy": "Reboot"}),
        [
            'spec.recovery.onUnhealthy: Unsupported value: "Reboot": supported values: "None", "RestartMachine", '
            '"Relocate"',
            SKIPPED,
        ],
    ),
    *(
        (
            f"recovery-{most}-per-hour",
            agent(recovery={"maxPerHour": most}),
            [
                f"spec.recovery.maxPerHour: Invalid value: {most}: spec.recovery.maxPerHour in body should be {told}",
            ],
        )
        for most, told in ((0, "greater than or equal to 1"), (61, "less than or equal to 60"))
    ),
    (
        "recovery-by-a-move-that-is-forbidden",
        agent(recovery={"onUnhealthy": "Relocate"}, placement={"relocate": "Never"}),
        [
            "spec.recovery.onUnhealthy: Invalid value: recovery.onUnhealthy Relocate does not go with "
            "placement.relocate Never: use RestartMachine, or let the agent move with OnCapacity or OnFailure"
        ],
    ),
    *(
        (
            f"mount-path-{index}",
            agent(volume={"mountPath": path}),
            [
                f'spec.volume.mountPath: Invalid value: "{path}": must be an absolute path such as /data, without '
                "dots at the start of a part and no slash at its end"
            ],
        )
        for index, path in enumerate(["data", "/", "/data/", "/a/../b", "/a//b"])
    ),
    (
        "heartbeat",
        agent(heartbeat={"intervalSeconds": 4, "missedBeforeUnhealthy": 101}),
        [
            "spec.heartbeat.intervalSeconds: Invalid value: 4: spec.heartbeat.intervalSeconds in body should be "
            "greater than or equal to 5",
            "spec.heartbeat.missedBeforeUnhealthy: Invalid value: 101: spec.heartbeat.missedBeforeUnhealthy in body "
            "should be less than or equal to 100",
        ],
    ),
    *(
        (
            f"env-reserved-{env}",
            agent(env=[{"name": "FINE", "value": "x"}, {"name": env, "value": "x"}]),
            [
                f"spec.env[1].name: Invalid value: env name {env} is reserved for the supervisor: choose another name",
            ],
        )
        for env in (
            *("FLY_", "FLY_APP_NAME", "ROOST_MEMORY_MB", "DIDCOMM_X", "AGENT_DID", "AGENTSHIELD_API_URL"),
            *("AS_HEARTBEAT_TOKEN", "OPENCLAW_GATEWAY_TOKEN", "DATA_DIR", "CONTROL_PORT", "PAIRING_PORT"),
            *("HEARTBEAT_INTERVAL_MS", "FLEET_MCP_PORT"),
        )
    ),
    (
        "env-name",
        agent(env=[{"name": "1-A", "value": "x"}]),
        [
            'spec.env[0].name: Invalid value: "1-A": must be a variable\'s name: letters, digits and underscores, no '
            "digit first"
        ],
    ),
    (
        "env-neither",
        agent(env=[{"name": "A"}]),
        ["spec.env[0]: Invalid value: env A needs exactly one of value and valueFrom"],
    ),
    (
        "env-both",
        agent(env=[{"name": "A", "value": "", "valueFrom": {"name": "s", "key": "k"}}]),
        ["spec.env[0]: Invalid value: env A needs exactly one of value and valueFrom"],
    ),
    (
        "env-twice",
        agent(env=[{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]),
        ['spec.env[1]: Duplicate value: {"name":"A"}'],
    ),
    (
        "env-reference",
        agent(env=[{"name": "A", "valueFrom": {"name": "No", "key": "a/b"}}]),
        [
            'spec.env[0].valueFrom.key: Invalid value: "a/b": must be a key of a Secret: letters, digits, dashes, '
            "dots and underscores",
            'spec.env[0].valueFrom.name: Invalid value: "No": must be the name of an object: lower-case letters, '
            "digits, dashes and dots",
        ],
    ),
    *(
        (
            f"file-path-{index}",
            agent(files=[{"path": path, "content": ""}]),
            [
                f'spec.files[0].path: Invalid value: "{path}": must be a path of plain characters relative to '
                "volume.mountPath, without empty, . and .. parts, such as etc/a.conf"
            ],
        )
        for index, path in enumerate(
            ["", "/etc/passwd", "..", "a/../b", "a/..", "./a", "a//b", "a/", "\u00fcber"]  # the last is not ASCII
        )
    ),
    (
        "file-reserved",
        agent(files=[{"path": ".roost/bundle", "content": ""}]),
        [
            "spec.files[0].path: Invalid value: path .roost/bundle lies in .roost, which belongs to the supervisor: "
            "choose another path"
        ],
    ),
    (
        "file-mode",
        agent(files=[{"path": "a", "mode": "u+x", "content": ""}]),
        ["spec.files[0].mode: Invalid value: \"u+x\": must be four octal digits in quotes, such as '0600'"],
    ),
    (
        "file-neither",
        agent(files=[{"path": "a"}]),
        ["spec.files[0]: Invalid value: file a needs exactly one of content and contentFrom"],
    ),
    (
        "file-both",
        agent(files=[{"path": "a", "content": "", "contentFrom": {"name": "s", "key": "k"}}]),
        ["spec.files[0]: Invalid value: file a needs exactly one of content and contentFrom"],
    ),
    (
        "file-twice",
        agent(files=[{"path": "a", "content": ""}, {"path": "a", "content": ""}]),
        ['spec.files[1]: Duplicate value: {"path":"a"}'],
    ),
]


@pytest.mark.parametrize(("spec", "told"), [pytest.param(spec, told, id=case) for case, spec, told in REFUSED_AGENTS])
def test_an_agent_is_refused_with_a_sentence(api: Api, spec: Body, told: list[str]) -> None:
    assert refusal(api.create("Agent", "refused", spec)) == sorted(told)


def test_a_fleet_refuses_the_same_of_its_template(api: Api) -> None:
    for case, spec, told in REFUSED_AGENTS:
        lines = {line.replace("spec.", "spec.template.spec.") for line in told}
        assert lines <= {*refusal(api.create("Fleet", "refused", {"template": {"spec": spec}}))}, case


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (
            fleet(fly={"app": "one"}),
            "spec.template.spec.fly.app: Invalid value: fly.app one can't be the own app of every member: leave app "
            "out, or use appStrategy Shared",
        ),
        (
            fleet(desiredState="Stopped"),
            "spec.template.spec.desiredState: Invalid value: desiredState belongs to one Agent: stop a member with "
            "kubectl patch agents, or set replicas to 0",
        ),
        (
            fleet(revoked=True),
            "spec.template.spec.revoked: Invalid value: revoked belongs to one Agent: kubectl annotate agents -l "
            "roost.dev/fleet=NAME roost.dev/revoked=true",
        ),
        (
            fleet(paused=True),
            "spec.template.spec.paused: Invalid value: paused belongs to one Agent: pause a member with kubectl patch "
            "agents",
        ),
        (
            fleet(restartedAt="now"),
            "spec.template.spec.restartedAt: Invalid value: restartedAt belongs to one Agent: restart a member with "
            "kubectl patch agents",
        ),
        (
            fleet(desiredState="Suspended"),
            "spec.template.spec.desiredState: Invalid value: desiredState belongs to one Agent: stop a member with "
            "kubectl patch agents, or set replicas to 0",
        ),
        (
            fleet(volume={"restoreFrom": {"snapshot": "vs_1"}}),
            "spec.template.spec.volume.restoreFrom.snapshot: Invalid value: volume.restoreFrom.snapshot is of one "
            "Agent's volume and can't fill every member's: restore a member with kubectl patch agents, or name an "
            "Agent in restoreFrom.agent",
        ),
        (
            fleet() | {"replicas": 1001},
            "spec.replicas: Invalid value: 1001: spec.replicas in body should be less than or equal to 1000",
        ),
        (
            {"template": fleet()["template"] | {"metadata": {"labels": {"a b": "c"}}}},
            "spec.template.metadata.labels: Invalid value: a label's key is not valid: use [prefix/]name",
        ),
        (
            {"template": fleet()["template"] | {"metadata": {"labels": {"a": "b c"}}}},
            "spec.template.metadata.labels: Invalid value: a label's value is not valid: use at most 63 letters, "
            "digits, dashes, dots and underscores",
        ),
        (
            {"template": fleet()["template"] | {"metadata": {"labels": {"roost.dev/fleet": "b"}}}},
            "spec.template.metadata.labels: Invalid value: labels of roost.dev/ are set by the Fleet itself: "
            "use another prefix",
        ),
        (
            {"template": fleet()["template"] | {"metadata": {"annotations": {"a b": "c"}}}},
            "spec.template.metadata.annotations: Invalid value: an annotation's key is not valid: use [prefix/]name",
        ),
        (
            {"template": fleet()["template"] | {"metadata": {"annotations": {"roost.dev/revoked": "true"}}}},
            "spec.template.metadata.annotations: Invalid value: annotations of roost.dev/ act on one Agent: set them "
            "on the member with kubectl annotate agents",
        ),
    ],
)
def test_a_fleet_is_refused_with_a_sentence(api: Api, spec: Body, told: str) -> None:
    assert refusal(api.create("Fleet", "refused", spec)) == [told]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({}, ["spec.source: Required value", SKIPPED]),
        ({"source": {}}, ["spec.source.secretRef: Required value", SKIPPED]),
        (
            {"source": {"secretRef": {"name": "A"}}},
            [
                'spec.source.secretRef.name: Invalid value: "A": must be the name of an object: lower-case letters, '
                "digits, dashes and dots"
            ],
        ),
        (
            {"source": {"secretRef": {"name": "a"}}, "keys": [{"name": "k", "from": "x y"}, {"name": "k"}]},
            [
                'spec.keys[1]: Duplicate value: {"name":"k"}',
                'spec.keys[0].from: Invalid value: "x y": must be a key of a Secret: letters, digits, dashes, dots '
                "and underscores",
            ],
        ),
        *(
            (
                {"source": {"secretRef": {"name": "a"}}, "keys": [{"name": "k", "pattern": pattern}]},
                [
                    f'spec.keys[0].pattern: Invalid value: "{pattern}": must be a plain regular expression: '
                    "characters, classes, dots, each with *, +, ? or a count in braces, and groups of words such as "
                    "(sk|pk); at most two parts may vary in length or be groups, and then it starts with ^"
                ],
            )
            for pattern in ("(a+)+$", "[", "a*b", "^a*b*c*$")
        ),
        (
            {"source": {"secretRef": {"name": "a"}}, "availableTo": {"namespaces": ["team-*"]}},
            ['spec.availableTo.namespaces[0]: Invalid value: "team-*": must be the name of a namespace, or * for all'],
        ),
        (
            {"source": {"secretRef": {"name": "a"}}, "rotation": {"strategy": "Slow"}},
            ['spec.rotation.strategy: Unsupported value: "Slow": supported values: "Immediate", "Staged"', SKIPPED],
        ),
        (
            {"source": {"secretRef": {"name": "a"}}, "rotation": {"maxAgeDays": 0}},
            [
                "spec.rotation.maxAgeDays: Invalid value: 0: spec.rotation.maxAgeDays in body should be greater than "
                "or equal to 1"
            ],
        ),
    ],
)
def test_a_secret_is_refused_with_a_sentence(api: Api, spec: Body, told: list[str]) -> None:
    assert refusal(api.create("Secret", "refused", spec)) == sorted(told)


def test_replicas_are_a_number(api: Api) -> None:
    assert refusal(api.create("Fleet", "refused", fleet() | {"replicas": -1})) == [
        ".spec.replicas: Invalid value: -1: should be a non-negative integer",
        "spec.replicas: Invalid value: -1: spec.replicas in body should be greater than or equal to 0",
    ]
    api.create("Fleet", "refused", fleet() | {"replicas": None}, dry=True).raise_for_status()  # counts as left out
    assert refusal(api.apply("Fleet", "refused", fleet() | {"replicas": None})) == [
        ".spec.replicas: Invalid value: 0: .spec.replicas accessor error: <nil> is of the type <nil>, expected int64",
        SKIPPED,
        'spec.replicas: Invalid value: "null": spec.replicas in body must be of type integer: "null"',
    ]


@pytest.mark.parametrize(("kind", "longest"), [("Agent", 52), ("Fleet", 48)])
def test_a_name_leaves_room_for_what_is_derived_from_it(api: Api, kind: str, longest: int) -> None:
    spec = agent() if kind == "Agent" else fleet()
    assert api.create(kind, "n" * longest, spec, dry=True).status_code == 201
    [told] = refusal(api.create(kind, "n" * (longest + 1), spec))
    assert told.startswith(
        f"<nil>: Invalid value: metadata.name {'n' * (longest + 1)} is too long: use at most {longest} char"
    )
    assert refusal(api.create(kind, "a.b", spec)) == [
        "<nil>: Invalid value: metadata.name a.b has a dot: use lower-case letters, digits and dashes only"
    ]


# --- Refused when it is changed. --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            {"volume": {"sizeGb": 5}},
            {"volume": {"sizeGb": 4}},
            "volume.sizeGb: Invalid value: sizeGb can't go from 5 down to 4: a volume at Fly can't shrink; keep the "
            "size, or apply it under another name",
        ),
        (
            {"volume": {"mountPath": "/a"}},
            {"volume": {"mountPath": "/b"}},
            "volume.mountPath: Invalid value: mountPath can't change from /a to /b: files would be lost from sight; "
            "keep it, or apply it under another name",
        ),
        (
            {"identity": {"tokenEpoch": 2}},
            {"identity": {"tokenEpoch": 1}},
            "identity.tokenEpoch: Invalid value: tokenEpoch can't go from 2 down to 1: an earlier token must never "
            "work again; use a higher number",
        ),
        (
            {"fly": {"appStrategy": "Shared", "app": "a"}},
            {"fly": {"app": "a"}},
            f"fly.appStrategy: Invalid value: appStrategy can't change from Shared to PerAgent: {STAYS}",
        ),
        (
            {"fly": {"appStrategy": "Shared", "app": "a"}},
            {"fly": {"appStrategy": "Shared", "app": "b"}},
            f"fly.app: Invalid value: app can't change from a to b: {STAYS}",
        ),
        *(
            ({"fly": old}, {"fly": new}, f"fly.{field}: Invalid value: {field} can't change from {told}: {STAYS}")
            for field in ("credential", "org", "network")
            for old, new, told in (
                ({field: "a"}, {field: "b"}, "a to b"),
                ({}, {field: "b"}, "unset to b"),
                ({field: "a"}, {}, "a to unset"),
            )
        ),
    ],
)
def test_what_cannot_move_is_refused_with_a_remedy(api: Api, name: str, before: Body, after: Body, told: str) -> None:
    api.create("Agent", name, agent(**before)).raise_for_status()
    assert refusal(api.replace("Agent", name, agent(**after))) == [f"spec.{told}"]
    if before != {"fly": {"appStrategy": "Shared", "app": "a"}} or "appStrategy" in after["fly"]:
        api.create("Fleet", name, fleet(**before)).raise_for_status()
        assert refusal(api.replace("Fleet", name, fleet(**after))) == [f"spec.template.spec.{told}"]


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ({"volume": {"sizeGb": 5}}, "spec.volume.sizeGb: Invalid value: sizeGb can't go from 5 down to 1"),
        (
            {"volume": {"mountPath": "/a"}},
            "spec.volume.mountPath: Invalid value: mountPath can't change from /a to /data",
        ),
        ({"fly": {"org": "a"}}, "spec.fly.org: Invalid value: org can't change from a to unset"),
        (
            {"identity": {"tokenEpoch": 3}},
            "spec.identity.tokenEpoch: Invalid value: tokenEpoch can't go from 3 down to 0",
        ),
    ],
)
@pytest.mark.parametrize("gone", ["left out", "null", "empty"])
def test_taking_a_block_away_escapes_nothing(api: Api, name: str, before: Body, told: str, gone: str) -> None:
    api.create("Agent", name, agent(**before)).raise_for_status()
    [block] = before
    after = {"left out": {}, "null": {block: None}, "empty": {block: {}}}[gone]
    [line] = refusal(api.replace("Agent", name, agent(**after)))
    assert line.startswith(told)
    [line] = refusal(api.replace("Agent", name, agent(**after) | {block: {}}))
    assert line.startswith(told)


def test_what_may_change_may_change(api: Api, name: str) -> None:
    api.create("Agent", name, agent(volume={"sizeGb": 5})).raise_for_status()
    everything_else = agent(
        volume={
            "sizeGb": 6,
            "snapshotRetentionDays": 1,
            "autoExtend": {"atPercent": 80, "byGb": 1, "limitGb": 7},
            "onLoss": "Fail",
            "restoreFrom": {"agent": "ada"},
        },
        identity={"displayName": "N", "tokenEpoch": 1, "bootstrap": "FlyOidc"},
        machine={
            "cpuKind": "performance",
            "cpus": 2,
            "memoryMb": 4096,
            "restart": "Never",
            "image": "a:b",
            "stopTimeoutSeconds": 5,
            "public": "Gateway",
            "autostart": True,
            "metadata": {"a": "b"},
        },
        placement={"regions": ["ord"], "relocate": "OnFailure"},
        idle={"afterSeconds": 60, "action": "Stop"},
        recovery={"onUnhealthy": "Relocate", "maxPerHour": 1},
        desiredState="Stopped",
        deletionPolicy="Retain",
        revoked=True,
        paused=True,
        restartedAt="1",
        env=[{"name": "A", "value": "b"}],
        files=[{"path": "a", "content": "b"}],
        heartbeat={"intervalSeconds": 5},
        telemetry={"intervalSeconds": 60},
        model={"default": "a/b"},
        providers=[{"id": "a", "baseUrl": "http://a"}],
        channels={"whatsapp": {}},
        soul={"content": "b"},
        workspace=[{"path": "a", "content": "b"}],
        skills={"policy": "Merge"},
        bridge={"appKey": "a"},
    )
    api.replace("Agent", name, everything_else).raise_for_status()
    api.replace("Agent", name, agent(volume={"sizeGb": 6}, identity={"tokenEpoch": 1})).raise_for_status()
    asleep = agent(volume={"sizeGb": 6}, identity={"tokenEpoch": 1}, desiredState="Suspended")
    api.replace("Agent", name, asleep).raise_for_status()
    openclaw = agent(volume={"sizeGb": 6}, identity={"tokenEpoch": 1}, runtime=OPENCLAW | {"config": {"a": 1}})
    api.replace("Agent", name, openclaw).raise_for_status()


# --- Accepted. --------------------------------------------------------------------------------------------------


def test_defaults_are_stored(api: Api, name: str) -> None:
    api.create("Agent", name, agent()).raise_for_status()
    found = api.get("Agent", name)
    assert found["spec"] == AgentSpec.model_validate(agent()).model_dump(mode="json", by_alias=True, exclude_none=True)
    assert parse_agent_spec(found) == AgentSpec.model_validate(agent())
    assert not {"autoExtend", "restoreFrom"} & found["spec"]["volume"].keys()
    assert not {"model", "soul", "bridge"} & found["spec"].keys()
    assert found["spec"]["channels"] == {}
    api.create("Fleet", name, fleet()).raise_for_status()
    assert api.get("Fleet", name)["spec"] == {
        "template": {"metadata": {"labels": {}, "annotations": {}}, "spec": found["spec"]}
    }
    source = {"source": {"secretRef": {"name": "a"}}}
    api.create("Secret", name, source).raise_for_status()
    assert api.get("Secret", name)["spec"] == source | {
        "keys": [],
        "availableTo": {"agentSelector": {"matchLabels": {}}, "namespaces": []},
        "rotation": {"strategy": "Immediate"},
    }


FULL_KEY = {"name": "n" * 253, "key": "k" * 253, "kind": "CoreSecret"}
WHOLE = agent(
    desiredState="Stopped",
    revoked=True,
    paused=True,
    deletionPolicy="Retain",
    restartedAt="2026-11-21T10:00:00Z",
    identity={"displayName": "Åda Ω", "tokenEpoch": 1_000_000_000, "bootstrap": "FlyOidc"},
    fly={"credential": "eu", "org": "acme", "appStrategy": "PerAgent", "app": "a" * 62, "network": "net_1"},
    placement={"regions": ["iad"] * 14 + ["eu", "any"], "relocate": "OnFailure"},
    machine={
        "image": "r/a@sha256:0",
        "cpuKind": "performance",
        "cpus": 16,
        "memoryMb": 131_072,
        "stopTimeoutSeconds": 300,
        "restart": "Always",
        "public": "All",
        "autostart": True,
        "metadata": {f"{n:02}{'A-_.' * 15}z": " ~" * 127 + "!" for n in range(16)},
    },
    volume={
        "sizeGb": 499,
        "mountPath": "/mnt/some.where/data_1",
        "snapshotRetentionDays": 60,
        "autoExtend": {"atPercent": 99, "byGb": 100, "limitGb": 500},
        "onLoss": "Recreate",
        "restoreFrom": {"snapshot": "vs_" + "x" * 61},
    },
    runtime={
        "kind": "Command",
        "version": "1.4.2+b-1_x",
        "command": ["x" * 32_768, *["'\"%s\n\\"] * 63],
        "readiness": {"httpGet": {"path": "/a?b=c%20", "port": 65535}, "initialDeadlineSeconds": 86_400},
        "rollback": False,
        "config": {},
    },
    model={"default": "o/" + "m" * 251, "fallbacks": ["openrouter/a/b-1.2:free@x"] * 16, "thinking": "adaptive"},
    providers=[
        {
            "id": f"p.{n}-_a",
            "apiKeyFrom": FULL_KEY,
            "baseUrl": "https://[fdaa::3]:8080/v1?a=@" + "u" * 2019,
            "api": "azure-openai-responses",
        }
        for n in range(32)
    ],
    channels={
        "telegram": {"tokenFrom": FULL_KEY, "dmPolicy": "Open", "allowFrom": ["1" * 128] * 127 + ["*"]},
        "discord": {"tokenFrom": FULL_KEY, "dmPolicy": "Allowlist", "allowFrom": ["discord:12"]},
        "slack": {"botTokenFrom": FULL_KEY, "appTokenFrom": FULL_KEY, "dmPolicy": "Disabled", "allowFrom": []},
        "whatsapp": {"dmPolicy": "Pairing", "allowFrom": ["+15550100"]},
    },
    soul={"configMapRef": {"name": "souls", "key": "ada.md"}},
    workspace=[{"path": f"a b/{n}.md", "content": "\0ü", "policy": "Overwrite"} for n in range(63)]
    + [{"path": ".skills/..a", "configMapRef": {"name": "s.x", "key": "-._"}, "policy": "Seed"}],
    skills={
        "policy": "Merge",
        "items": [
            {
                "name": f"{n:02}" + "s-_" * 42,
                "version": "10.20.30-alpha.1+build-7.x",
                "configMapRef": {"name": "w"},
                "sha256": "0123456789abcdef" * 4,
            }
            for n in range(32)
        ],
    },
    bridge={
        "enabled": True,
        "baseUrl": "https://bridge.example.com",
        "serviceId": "i" * 253,
        "appKey": "a" * 253,
        "serviceKeyFrom": FULL_KEY,
        "baseUrlMapFrom": FULL_KEY,
        "linkingSecretFrom": FULL_KEY,
    },
    telemetry={"intervalSeconds": 86_400, "initialDelaySeconds": 86_400},
    env=[{"name": f"A_{n}", "value": "v"} for n in range(255)]
    + [{"name": "_", "valueFrom": {"name": "s.x", "key": "K", "kind": "Secret"}}],
    files=[{"path": f".config/..a/.b./c {n}", "mode": "0777", "content": "\0ü"} for n in range(63)]
    + [{"path": "x" * 255, "mode": "0600", "contentFrom": {"name": "s", "key": ".", "kind": "Secret"}}],
    heartbeat={"intervalSeconds": 3600, "missedBeforeUnhealthy": 100},
    idle={"afterSeconds": 604_800, "action": "Stop", "allowDeaf": True},
    recovery={"onUnhealthy": "Relocate", "maxPerHour": 60},
)


def test_a_free_form_config_is_kept_whole(api: Api, name: str) -> None:
    config = {"tools": {"deny": ["exec", {"x": [1, 2.5, True, ""]}]}, "agents": {"entries": {"main": {}}}}
    api.create("Agent", name, {"runtime": OPENCLAW | {"config": config}}).raise_for_status()
    found = api.get("Agent", name)
    assert found["spec"]["runtime"]["config"] == config
    assert parse_agent_spec(found).runtime.config == config


def test_every_field_at_its_limit_is_taken_stored_and_read(api: Api, name: str) -> None:
    api.create("Agent", name, WHOLE).raise_for_status()
    found = api.get("Agent", name)
    assert found["spec"] == WHOLE
    assert parse_agent_spec(found).model_dump(mode="json", by_alias=True, exclude_none=True) == WHOLE


TAKEN = [
    *(
        agent(machine={"cpuKind": kind, "cpus": cpus, "memoryMb": memory})
        for kind, counts, least, most in (
            ("shared", (1, 2, 4, 6, 8), 256, 2048),
            ("performance", (1, 2, 4, 6, 8, 10, 12, 14, 16), 2048, 8192),
        )
        for cpus in counts
        for memory in (max(1024, least * cpus), most * cpus)
    ),
    agent(desiredState="Suspended", machine={"memoryMb": 2048}),
    agent(idle={"action": "Suspend", "afterSeconds": 60, "allowDeaf": True}, machine={"memoryMb": 2048}),
    agent(idle={"action": "Stop", "afterSeconds": 60}, machine={"public": "Gateway", "autostart": True}),
    agent(volume={"restoreFrom": {"agent": "ada"}}),
    agent(placement={"regions": ["iad", "iad", "us", "usa"]}),  # one that comes twice does no harm
    agent(placement={"relocate": "Never"}, recovery={"onUnhealthy": "RestartMachine"}),
    {"runtime": OPENCLAW},
    {"runtime": {"kind": "OpenClaw", "version": "2026.9.6-beta.1"}},
    *(agent(channels={channel: tokens | {"dmPolicy": "Disabled"}}) for channel, tokens in CHANNELS.items()),
    agent(channels={"whatsapp": {"dmPolicy": "Open", "allowFrom": ["*"]}}),
    agent(channels={"whatsapp": {"dmPolicy": "Allowlist", "allowFrom": ["1"]}}),
    agent(bridge={"enabled": True, "serviceId": "s", "serviceKeyFrom": KEY, "baseUrlMapFrom": KEY}),
    agent(workspace=[{"path": "SOUL.md", "content": ""}, {"path": "skills.md", "content": ""}]),
]


def test_what_just_keeps_the_rules_is_taken(api: Api) -> None:
    for spec in TAKEN:
        answer = api.create("Agent", "taken", spec, dry=True)
        assert answer.status_code == 201, answer.text
        answer = api.create("Fleet", "taken", {"template": {"spec": spec | {"desiredState": "Running"}}}, dry=True)
        assert answer.status_code == 201, answer.text


@settings(max_examples=60, deadline=None)
@given(agent_specs.SPECS)
def test_whatever_keeps_the_rules_is_taken(api: Api, spec: AgentSpec) -> None:
    body = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    answer = api.create("Agent", "taken", body, dry=True)
    assert answer.status_code == 201, answer.text
    assert answer.json()["spec"] == body


NULLS: Body = {
    "desiredState": None,
    "revoked": None,
    "restartedAt": None,
    "identity": {"displayName": None, "tokenEpoch": None, "bootstrap": None},
    "fly": {"credential": None, "org": None, "app": None, "network": None},
    "placement": {"regions": None, "relocate": None},
    "machine": {"image": None, "cpus": None, "cpuKind": None, "public": None, "autostart": None, "metadata": None},
    "volume": {
        "sizeGb": None,
        "snapshotRetentionDays": None,
        "autoExtend": None,
        "onLoss": None,
        "restoreFrom": {"snapshot": None, "agent": "ada"},
    },
    "runtime": RUNTIME | {"version": None, "readiness": None, "rollback": None, "config": None},
    "model": {"default": "a/b", "fallbacks": None, "thinking": None},
    "providers": [{"id": "a", "apiKeyFrom": KEY | {"kind": None}, "baseUrl": None, "api": None}],
    "channels": {"telegram": None, "discord": None, "slack": None, "whatsapp": {"dmPolicy": None, "allowFrom": None}},
    "env": [{"name": "A", "value": None, "valueFrom": {"name": "s", "key": "k"}}],
    "files": [{"path": "a", "mode": None, "content": "", "contentFrom": None}],
    "soul": {"content": "", "configMapRef": None},
    "workspace": [{"path": "a", "content": "", "configMapRef": None, "policy": None}],
    "skills": {
        "policy": None,
        "items": [{"name": "we", "version": "1.0.0", "configMapRef": {"name": "w"}, "sha256": None}],
    },
    "bridge": {"enabled": None, "baseUrl": None, "serviceId": None, "serviceKeyFrom": None},
    "heartbeat": None,
    "telemetry": None,
    "idle": None,
    "recovery": {"onUnhealthy": None, "maxPerHour": None},
}


def test_null_is_accepted_under_server_side_apply_and_counts_as_left_out(api: Api, name: str) -> None:
    for _ in range(2):
        api.apply("Agent", name, NULLS).raise_for_status()
    found = api.get("Agent", name)
    assert found["metadata"]["generation"] == 1
    plain = agent(
        env=[{"name": "A", "valueFrom": {"name": "s", "key": "k"}}],
        files=[{"path": "a", "content": ""}],
        volume={"restoreFrom": {"agent": "ada"}},
        model={"default": "a/b"},
        providers=[{"id": "a", "apiKeyFrom": KEY}],
        channels={"whatsapp": {}},
        soul={"content": ""},
        workspace=[{"path": "a", "content": ""}],
        skills={"items": [{"name": "we", "version": "1.0.0", "configMapRef": {"name": "w"}}]},
        bridge={},
    )
    assert parse_agent_spec(found) == AgentSpec.model_validate(plain)
    no_blocks = agent(
        volume={"autoExtend": None, "restoreFrom": None}, model=None, channels=None, soul=None, bridge=None, skills=None
    )
    api.apply("Agent", f"{name}-new", no_blocks).raise_for_status()
    assert parse_agent_spec(api.get("Agent", f"{name}-new")) == AgentSpec.model_validate(agent())
    api.apply("Fleet", name, {"template": {"metadata": None, "spec": NULLS}}).raise_for_status()
    secret = {
        "source": {"secretRef": {"name": "a"}},
        "keys": [{"name": "k", "from": None, "required": None, "pattern": None}],
        "availableTo": {"agentSelector": None, "namespaces": None},
        "rotation": {"strategy": None, "maxAgeDays": None},
    }
    api.apply("Secret", name, secret).raise_for_status()


def test_a_block_is_taken_back_under_server_side_apply_by_leaving_it_out(api: Api, name: str) -> None:
    """Null in place of a block that was set makes an empty one of it there: that is refused, and the sentence helps."""
    api.apply("Agent", name, agent(volume={"restoreFrom": {"agent": "ada"}})).raise_for_status()
    assert refusal(api.apply("Agent", name, agent(volume={"restoreFrom": None}))) == [
        "spec.volume.restoreFrom: Invalid value: restoreFrom needs exactly one of snapshot and agent; for neither, "
        "leave restoreFrom out"
    ]
    api.apply("Agent", name, agent()).raise_for_status()
    assert "restoreFrom" not in api.get("Agent", name)["spec"]["volume"]


def test_whatsapp_is_switched_off_by_leaving_it_out(api: Api, name: str) -> None:
    """It has no field that is required, so that null would leave it on under server-side apply."""
    api.apply("Agent", name, agent(channels={"whatsapp": {}})).raise_for_status()
    api.apply("Agent", name, agent(channels={"whatsapp": None})).raise_for_status()
    assert "whatsapp" in api.get("Agent", name)["spec"]["channels"]
    api.apply("Agent", name, agent()).raise_for_status()
    assert api.get("Agent", name)["spec"]["channels"] == {}


def test_two_appliers_share_the_lists(api: Api, name: str) -> None:
    api.create("Agent", name, agent(env=[{"name": "A", "value": "1"}])).raise_for_status()
    api.apply("Agent", name, {"env": [{"name": "B", "value": "2"}]}).raise_for_status()
    assert [e["name"] for e in api.get("Agent", name)["spec"]["env"]] == ["A", "B"]


# --- Status, scale, columns, words. -----------------------------------------------------------------------------

CONDITION = {
    "type": "Ready",
    "status": "True",
    "reason": "Running",
    "message": "",
    "lastTransitionTime": "2026-11-21T10:00:00Z",
    "observedGeneration": 1,
}
STATUSES: list[tuple[str, Body, Any, type]] = [
    (
        "Agent",
        {
            "observedGeneration": 1,
            "phase": "Running",
            "conditions": [CONDITION],
            "did": "did:key:z6Mk",
            "app": {"name": "a", "org": "o", "network": "n", "incarnation": "u"},
            "machine": {
                "id": "3d8d",
                "name": "m",
                "state": "started",
                "version": "01",
                "region": "iad",
                "privateIp": "fdaa::3",
                "image": "r/a@sha256:0",
                "configHash": "1:ab",
            },
            "volume": {
                "id": "vol_1",
                "name": "r1",
                "state": "created",
                "region": "iad",
                "sizeGb": 1,
                "mountedBy": "3d8d",
                "restoredFrom": "snapshot/vs_1",
            },
            "previousVolume": {"id": "vol_0", "region": "ord", "expiresAt": "2026-11-28T10:00:00Z"},
            "idle": {
                "since": "2026-11-21T10:00:00Z",
                "wakeAt": "2026-11-21T11:58:00Z",
                "generation": 1,
                "wake": "now",
            },
            "recovery": {"count": 1, "windowStart": "2026-11-21T10:00:00Z", "lastReason": "silent"},
            "bundle": {"desired": "ab", "applied": "ab"},
            "agent": {
                "supervisorVersion": "0.1.0",
                "runtimeVersion": "1",
                "bootPhase": "done",
                "restarts": 0,
                "since": "2026-11-21T10:00:00Z",
                "lastExitReason": "",
                "degraded": ["disk"],
                "pendingPairings": 0,
            },
            "secrets": [{"name": "s", "version": 3}],
            "destroy": {
                "startedAt": "2026-11-21T10:00:00Z",
                "machineIds": ["3d8d"],
                "volumeIds": ["vol_1"],
                "app": "a",
                "lastError": {"op": "delete_app", "status": 500, "message": "m", "at": "2026-11-21T10:00:00Z"},
            },
            "nextAction": "waiting for machine 3d8d to start",
            "lastHandledReconcileAt": "now",
        },
        parse_agent_status,
        AgentStatus,
    ),
    (
        "Fleet",
        {
            "observedGeneration": 1,
            "replicas": 3,
            "readyReplicas": 2,
            "updatedReplicas": 1,
            "unavailableReplicas": 1,
            "selector": "roost.dev/fleet=f",
            "currentRevision": "f-1",
            "updateRevision": "f-2",
            "members": [{"name": "f-0", "phase": "Running", "revision": "f-1", "ready": True}],
            "conditions": [CONDITION],
            "lastHandledReconcileAt": "now",
        },
        parse_fleet_status,
        FleetStatus,
    ),
    (
        "Secret",
        {
            "observedGeneration": 1,
            "fingerprint": "ab",
            "activeVersion": 3,
            "rotatedFrom": 2,
            "activeRef": "a-v2",
            "previousRef": "a-v1",
            "rotation": {"at": "team/ada", "since": "2026-11-21T10:00:00Z"},
            "looked": "Polled",
            "pollSeconds": 15,
            "usedBy": {"agents": 2, "pending": 1, "names": ["ada", "team-b/bob"]},
            "keys": [{"name": "k", "present": True}],
            "lastRotatedAt": "2026-11-21T10:00:00Z",
            "conditions": [CONDITION],
            "lastHandledReconcileAt": "now",
        },
        parse_secret_status,
        SecretStatus,
    ),
]
SPECS: dict[str, Body] = {"Agent": agent(), "Fleet": fleet(), "Secret": {"source": {"secretRef": {"name": "a"}}}}


def leaves(schema: Body, at: str = "") -> set[str]:
    """The paths of all fields of a schema that are no blocks."""
    inside = schema.get("items", schema).get("properties")
    return {at} if inside is None else {p for n, field in inside.items() for p in leaves(field, f"{at}.{n}")}


def shown(value: Any, at: str = "") -> set[str]:
    """The paths of all fields of an object that are no blocks."""
    if isinstance(value, list) and value:
        return {path for item in value for path in shown(item, at)}
    return {p for n, v in value.items() for p in shown(v, f"{at}.{n}")} if isinstance(value, dict) else {at}


@pytest.mark.parametrize(("kind", "status", "parse", "model"), STATUSES, ids=[s[0] for s in STATUSES])
def test_a_status_is_stored_read_and_taken_away(
    api: Api, name: str, kind: str, status: Body, parse: Any, model: Any
) -> None:
    created = api.create(kind, name, SPECS[kind]).raise_for_status().json()
    assert created["status"] == {"observedGeneration": -1} == api.get(kind, name)["status"]

    written = api.write_status(kind, name, status)
    assert "warning" not in written.headers, written.headers["warning"]
    assert written.json()["status"] == status
    assert shown(status) == leaves(crd.resolved(model)), "a field is not shown here"
    dumped = parse(api.get(kind, name)).model_dump(mode="json", by_alias=True, exclude_none=True)
    assert dumped == status

    taken_away = api.write_status(kind, name, dict.fromkeys(status))
    assert taken_away.json()["status"] == {"observedGeneration": -1}


def test_a_slip_in_a_status_is_told(api: Api, name: str) -> None:
    """The operator treats this warning as a fault of its own; strict writing makes it an error."""
    api.create("Agent", name, agent()).raise_for_status()
    answer = api.write_status("Agent", name, {"machine": {"hash": "x"}})
    assert answer.status_code == 422 or answer.status_code == 400
    assert 'unknown field "status.machine.hash"' in answer.json()["message"]


def test_kubectl_refuses_in_words_that_help(api: Api) -> None:
    def told(spec: Body) -> str:
        code, _, err = api.kubectl("apply", "-f", "-", stdin=manifest("Agent", "spoken", spec))
        assert code == 1
        return err.strip()

    assert told(agent(volume={"sizeGB": 5})).endswith(
        'Agent in version "v1alpha1" cannot be handled as a Agent: strict decoding error: '
        'unknown field "spec.volume.sizeGB"'
    )
    assert told(agent(volume={"sizeGb": "5"})).splitlines() == [
        'The Agent "spoken" is invalid: ',
        '* spec.volume.sizeGb: Invalid value: "string": spec.volume.sizeGb in body must be of type integer: "string"',
        f"* {SKIPPED}",
    ]
    assert told({"runtime": {"kind": "Command"}}) == (
        'The Agent "spoken" is invalid: spec.runtime.command: Invalid value: command is empty: with kind Command, '
        'give the program and its arguments, for example ["python3", "-m", "http.server"]'
    )
    assert told(agent(env=[{"name": "DATA_DIR", "value": "/x"}])) == (
        'The Agent "spoken" is invalid: spec.env[0].name: Invalid value: env name DATA_DIR is reserved for the '
        "supervisor: choose another name"
    )
    code, out, _ = api.kubectl("apply", "-f", "-", stdin=manifest("Agent", "spoken", agent(volume={"sizeGb": 2})))
    assert (code, out) == (0, "agent.roost.dev/spoken created\n")
    assert told(agent()) == (
        'The Agent "spoken" is invalid: spec.volume.sizeGb: Invalid value: sizeGb can\'t go from 2 down to 1: '
        "a volume at Fly can't shrink; keep the size, or apply it under another name"
    )


def test_columns(api: Api) -> None:
    for (kind, status, *_), spec in zip(STATUSES, SPECS.values(), strict=True):
        full = copy.deepcopy(spec)
        if kind == "Agent":
            full["identity"] = {"displayName": "Ada"}
        if kind == "Fleet":
            full["replicas"] = 3
        api.create(kind, "shown", full).raise_for_status()
        api.write_status(kind, "shown", status).raise_for_status()

    def table(*arguments: str) -> list[str]:
        """The columns, then the row of our object without its age."""
        code, out, err = api.kubectl("get", *arguments)
        assert code == 0, err
        head, row = (" ".join(line.split()) for line in out.splitlines())
        return [head, row.rpartition(" ")[0]]

    assert table("ag", "shown") == [
        "NAME READY PHASE REGION RUNTIME MACHINE AGE",
        "shown True Running iad Command 3d8d",
    ]
    assert table("agents", "shown", "-o", "wide") == [
        "NAME READY PHASE REGION RUNTIME MACHINE REASON DISPLAY VOLUME IMAGE NEXT AGE",
        "shown True Running iad Command 3d8d Running Ada vol_1 r/a@sha256:0 waiting for machine 3d8d to start",
    ]
    assert table("fl", "shown") == ["NAME DESIRED REPLICAS READY UPDATED AGE", "shown 3 3 2 1"]
    assert table("rsec", "shown") == ["NAME READY VERSION SOURCE AGENTS PENDING AGE", "shown True 3 a 2 1"]
    _, everything, _ = api.kubectl("get", "roost")
    for kind in ("agent", "fleet", "secret"):
        assert f"{kind}.roost.dev/shown " in everything
    assert api.kubectl("get", "secret", "shown")[2].startswith('Error from server (NotFound): secrets "shown"')


def test_scale(api: Api, name: str) -> None:
    api.create("Fleet", name, fleet() | {"replicas": 2}).raise_for_status()
    api.write_status("Fleet", name, {"replicas": 2, "selector": "roost.dev/fleet=f"}).raise_for_status()
    code, out, err = api.kubectl("scale", f"fleet/{name}", "--replicas=4", "--current-replicas=2")
    assert (code, out, err) == (0, f"fleet.roost.dev/{name} scaled\n", "")
    scale = api.http.get(f"{api.path('Fleet', name)}/scale").json()
    assert scale["spec"] == {"replicas": 4}
    assert scale["status"] == {"replicas": 2, "selector": "roost.dev/fleet=f"}
    code, _, err = api.kubectl("scale", f"fleet/{name}", "--replicas=1001")
    assert code == 1
    assert "spec.replicas in body should be less than or equal to 1000" in err


def test_a_fleet_without_replicas_keeps_none(api: Api, name: str) -> None:
    """Else an autoscaled Fleet would fall back to one member with each apply."""
    api.create("Fleet", name, fleet() | {"replicas": 4}).raise_for_status()
    api.replace("Fleet", name, fleet()).raise_for_status()
    assert "replicas" not in api.get("Fleet", name)["spec"]


def described(schema: Body, at: str) -> Iterator[str]:
    """Every block, as `kubectl explain` names it."""
    if "properties" in schema:
        yield at
        for field, inner in schema["properties"].items():
            if field != "metadata" or at.count("."):
                yield from described(inner.get("items", inner), f"{at}.{field}")


@pytest.mark.parametrize("kind", crd.KINDS, ids=lambda kind: kind.kind)
def test_explain_has_a_word_for_every_field(api: Api, kind: Any) -> None:
    schema = crd.crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for at in described(schema, kind.short):
        code, out, err = api.kubectl("explain", at)
        assert code == 0, err
        assert "<no description>" not in out, at
    if kind is crd.AGENT:
        _, out, _ = api.kubectl("explain", "agents.roost.dev.spec.volume.sizeGb")
        assert "Size in GB. It may grow while the agent runs, never shrink. Default: 1." in " ".join(out.split())


# --- Samples. ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", sorted((ROOT / "manifests/samples").glob("*.yaml")), ids=lambda path: path.stem)
def test_samples_are_accepted(api: Api, sample: Path) -> None:
    for document in yaml.safe_load_all(sample.read_text()):
        namespace = document["metadata"].get("namespace", api.namespace)
        arguments = ("apply", "--dry-run=server", f"--namespace={namespace}", "-f", "-")
        code, _, err = api.kubectl(*arguments, stdin=document)
        assert (code, err) == (0, ""), sample
