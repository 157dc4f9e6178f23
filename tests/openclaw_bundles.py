"""Bundles of the kind OpenClaw, and the real package where this machine has it."""

import asyncio
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from roost.local.openclaw import VERSIONS, cache_dir
from roost_agent.contract import ConfigBundle
from roost_agent.runtime import Ran, User
from roost_agent.runtime.openclaw import Places
from roost_agent.runtime.openclaw.config import render
from roost_agent.runtime.openclaw.traits import of

PLACES = Places(Path("/data"))
BOTH = pytest.mark.parametrize("version", sorted(VERSIONS))


def bundle(**changes: Any) -> ConfigBundle:
    """A small bundle as it travels, with these fields instead; `secretEnv` is added to."""
    secrets = {"OPENCLAW_GATEWAY_TOKEN": "gateway-token-1"} | changes.pop("secretEnv", {})
    whole = {
        "revision": "r1",
        "generation": 1,
        "agent": {"did": "did:key:z1", "namespace": "team-a", "name": "ada", "uid": "u1"},
        "runtime": {"kind": "OpenClaw", "version": "2026.9.6"},
        "secretEnv": secrets,
        **changes,
    }
    return ConfigBundle.read(json.dumps(whole))


REALISTIC = {
    "plain": {},
    "anthropic on telegram": {
        "model": {"default": "anthropic/claude-sonnet-4-6", "fallbacks": ["openai/gpt-5.6-sol"], "thinking": "low"},
        "providers": [
            {"id": "anthropic", "apiKeyEnv": "ANTHROPIC_API_KEY"},
            {"id": "openai", "apiKeyEnv": "OPENAI_API_KEY", "baseUrl": "https://proxy.example.com/v1"},
        ],
        "channels": {"telegram": {"tokenEnv": "TELEGRAM_BOT_TOKEN", "dmPolicy": "pairing"}},
        "secretEnv": {"ANTHROPIC_API_KEY": "sk-ant-1", "OPENAI_API_KEY": "sk-oai-1", "TELEGRAM_BOT_TOKEN": "123456:AA"},
    },
    "every channel": {
        "model": {"default": "google/gemini-3.5-flash"},
        "channels": {
            "telegram": {"tokenEnv": "TELEGRAM_BOT_TOKEN", "dmPolicy": "open"},
            "discord": {"tokenEnv": "DISCORD_BOT_TOKEN", "dmPolicy": "allowlist", "allowFrom": ["123456789012345678"]},
            "slack": {"tokenEnv": "SLACK_BOT_TOKEN", "appTokenEnv": "SLACK_APP_TOKEN", "dmPolicy": "disabled"},
            "whatsapp": {"allowFrom": ["+15550100"]},
        },
        "secretEnv": {
            "TELEGRAM_BOT_TOKEN": "123456:AAbb",
            "DISCORD_BOT_TOKEN": "discord-token",
            "SLACK_BOT_TOKEN": "xoxb-token",
            "SLACK_APP_TOKEN": "xapp-token",
        },
    },
    "foreign providers": {
        "model": {"default": "moonshot/kimi-k3", "fallbacks": ["groq/llama-4", "own-llm/small"]},
        "providers": [
            {"id": "moonshot", "baseUrl": "https://api.moonshot.ai/v1", "apiKeyEnv": "MOONSHOT_API_KEY"},
            {"id": "groq", "baseUrl": "https://api.groq.com/openai/v1", "apiKeyEnv": "GROQ_API_KEY"},
            {"id": "own-llm", "baseUrl": "http://10.0.0.1:8000/v1", "api": "openai-responses"},
        ],
        "secretEnv": {"MOONSHOT_API_KEY": "sk-moonshot", "GROQ_API_KEY": "gsk-groq-1"},
    },
    "overlaid": {
        "openclaw": {
            "overlay": {
                "agents": {"defaults": {"thinkingDefault": "high", "bootstrapMaxChars": 40000}},
                "channels": {"telegram": {"groups": {"*": {"requireMention": True}}}},
                "commands": {"ownerAllowFrom": ["telegram:1"]},
            }
        },
    },
}


def rendered(of_bundle: ConfigBundle) -> dict[str, Any]:
    assert of_bundle.runtime is not None
    return render(of_bundle, places=PLACES, traits=of(of_bundle.runtime.version))


def strings(value: Any) -> list[str]:
    """All texts of a JSON value, keys among them."""
    if isinstance(value, dict):
        return [*value, *(text for below in value.values() for text in strings(below))]
    if isinstance(value, list):
        return [text for below in value for text in strings(below)]
    return [value] if isinstance(value, str) else []


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Package:
    """One version of the real OpenClaw."""

    node: Path
    entry: Path
    schema: Path


def package(version: str) -> Package:
    """From the cache that the tests with a real OpenClaw fill; without it the test is skipped."""
    opt = cache_dir(os.environ) / "opt"
    root = opt / "openclaw" / version
    found = Package(opt / "node/bin/node", root / "node_modules/openclaw/openclaw.mjs", root / "schema.json")
    if not all(path.exists() for path in (found.node, found.entry, found.schema)):
        pytest.skip(f"OpenClaw {version} is not in {opt}; tests/openclaw put it there")
    return found


async def run(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, user: User | None, seconds: float) -> Ran:
    process = await asyncio.create_subprocess_exec(
        *argv, env=env, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(seconds):
        stdout, stderr = await process.communicate()
    assert process.returncode is not None
    return Ran(process.returncode, stdout, stderr)


@functools.cache
def schema(version: str) -> jsonschema.Draft7Validator:
    """The version's own schema, read by another validator than the one under test."""
    return jsonschema.Draft7Validator(_of_inputs(json.loads(package(version).schema.read_text())))


def _of_inputs(node: Any) -> Any:
    """What has a default need not be given; the references, all in plugins that no test configures, are left out."""
    if isinstance(node, list):
        return [_of_inputs(item) for item in node]
    if not isinstance(node, dict) or "$ref" in node:
        return {} if isinstance(node, dict) else node
    found = {key: _of_inputs(value) for key, value in node.items()}
    if isinstance(found.get("required"), list):
        found["required"] = [n for n in found["required"] if "default" not in found.get("properties", {}).get(n, {})]
    return found
