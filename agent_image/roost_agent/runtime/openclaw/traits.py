"""What differs between versions of OpenClaw, as far as the supervisor depends on it.

Read off the packages 2026.9.5 and 2026.9.6 and tried with both. Of any other version it is assumed that it behaves as
the nearest of these below it, or as 2026.9.5 when there is none; where that is wrong, its own schema refuses the
configuration before it is applied. Before 2026.8 there is no `/startupz`, and pairing lies in files: not supported.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from roost_agent.runtime import Refused

__all__ = ["Traits", "of"]

_OLDEST = (2026, 8, 0)
_VERSION = re.compile(r"(\d{4})\.(\d{1,2})\.(\d{1,4})(?:[-+.][0-9A-Za-z.+-]*)?")


@dataclass(frozen=True, slots=True)
class Traits:
    """What is particular to a version.

    `reload`: by a path of openclaw.json, whether a change below it is taken up by the running process (True) or starts
    it anew (False); the longest path decides, and what none covers is a new start (`config-reload-plan`).
    `builtin`: the providers that it brings, with the protocol they speak where the package says so.
    `external`: plugins that are no part of the package, with the ids of providers and the names of variables whose mere
    presence makes every start try to fetch the plugin, which takes 15 s and fails on a closed network.
    """

    version: str
    reload: Mapping[str, bool]
    builtin: Mapping[str, str | None]
    external: Mapping[str, frozenset[str]]


def of(version: str) -> Traits:
    """The traits of a version.

    Raises:
        Refused: it is no version, or too old.
    """
    if not (found := _VERSION.fullmatch(version)):
        raise Refused(f"runtime.version {version[:64]} is no version of OpenClaw: name an exact one, such as 2026.9.6")
    number = (int(found[1]), int(found[2]), int(found[3]))
    if number < _OLDEST:
        raise Refused(
            f"runtime.version {version} is too old: nothing shows when OpenClaw before 2026.8 has started; take a newer"
        )
    return Traits(version, _RELOAD_9_6 if number >= (2026, 9, 6) else _RELOAD_9_5, _BUILTIN, _EXTERNAL)


_HOT = (
    "accessGroups",
    "agents",
    "approvals.exec",
    "approvals.plugin",
    "attachments.ttlHours",
    "auth.order",
    "auth.profiles",
    "bindings",
    "broadcast",
    "channels",
    "commands",
    "cron",
    "diagnostics.enabled",
    "discovery.mdns.mode",
    "gateway.auth.rateLimit",
    "gateway.controlUi.allowedOrigins",
    "gateway.controlUi.enabled",
    "gateway.http.endpoints",
    "gateway.nodes.browser",
    "gateway.nodes.commands",
    "gateway.nodes.pairing",
    "gateway.reload",
    "gateway.remote",
    "gateway.terminal",
    "gateway.tools",
    "hooks",
    "logging",
    "mcp",
    "memory.citations",
    "messages",
    "meta",
    "models",
    "plugins",
    "secrets",
    "session",
    "skills",
    "surfaces",
    "talk",
    "telemetry.enabled",
    "tools",
    "tts",
    "ui",
    "update.auto.enabled",
    "update.channel",
    "update.checkOnStart",
    "wizard",
    "worktreeRoot",
)
_HOT_SINCE_9_6 = (
    "acp",
    "cloudWorkers",
    "desktop.host",
    "gateway.allowRealIpFallback",
    "gateway.auth.allowTailscale",
    "gateway.auth.identityScopes",
    "gateway.auth.trustedProxy",
    "gateway.roles",
    "gateway.trustedProxies",
    "transcripts",
    "worktreeAcceleration",
)
_COLD = ("mcp.apps", "secrets.egressProxy")
_RELOAD_9_5: Mapping[str, bool] = MappingProxyType(dict.fromkeys(_HOT, True) | dict.fromkeys(_COLD, False))
_RELOAD_9_6: Mapping[str, bool] = MappingProxyType({**_RELOAD_9_5, **dict.fromkeys(_HOT_SINCE_9_6, True)})

_BUILTIN: Mapping[str, str | None] = MappingProxyType(
    {
        "anthropic": "anthropic-messages",
        "apple-fm": None,
        "claude-cli": None,
        "clawrouter": None,
        "copilot-proxy": None,
        "fal": None,
        "github-copilot": "openai-responses",
        "google": "google-generative-ai",
        "google-gemini-cli": None,
        "google-vertex": None,
        "huggingface": "openai-completions",
        "litellm": None,
        "lmstudio": None,
        "microsoft-foundry": None,
        "minimax": None,
        "minimax-portal": None,
        "nvidia": "openai-completions",
        "ollama": None,
        "ollama-cloud": "ollama",
        "openai": "openai-responses",
        "opencode-go": "openai-completions",
        "openrouter": None,
        "sglang": None,
        "together": "openai-completions",
        "vllm": None,
        "xai": "openai-responses",
    }
)
"""`openclaw.plugin.json` of the package's own plugins: `providers` and `modelCatalog.providers`."""

_EXTERNAL: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        plugin: frozenset(triggers.split())
        for plugin, triggers in (
            ("amazon-bedrock", "amazon-bedrock"),
            ("amazon-bedrock-mantle", "amazon-bedrock-mantle"),
            ("anthropic-vertex", "anthropic-vertex"),
            ("arcee", "ARCEEAI_API_KEY arcee"),
            ("baseten", "BASETEN_API_KEY baseten"),
            ("brave", "BRAVE_API_KEY"),
            ("byteplus", "BYTEPLUS_API_KEY byteplus byteplus-plan"),
            ("cerebras", "CEREBRAS_API_KEY cerebras"),
            ("chutes", "CHUTES_API_KEY CHUTES_OAUTH_TOKEN chutes"),
            ("cloudflare-ai-gateway", "CLOUDFLARE_AI_GATEWAY_API_KEY cloudflare-ai-gateway"),
            ("cohere", "cohere"),
            ("comfy", "COMFY_API_KEY COMFY_CLOUD_API_KEY comfy"),
            ("deepinfra", "DEEPINFRA_API_KEY deepinfra"),
            ("deepseek", "DEEPSEEK_API_KEY deepseek"),
            ("exa", "EXA_API_KEY"),
            ("featherless", "FEATHERLESS_API_KEY featherless"),
            ("firecrawl", "FIRECRAWL_API_KEY"),
            ("fireworks", "FIREWORKS_API_KEY fireworks fireworks-ai"),
            ("gmi", "gmi gmi-cloud gmicloud"),
            ("groq", "GROQ_API_KEY groq"),
            ("kilocode", "KILOCODE_API_KEY kilocode"),
            ("kimi", "KIMICODE_API_KEY KIMI_API_KEY kimi kimi-coding"),
            ("longcat", "LONGCAT_API_KEY longcat meituan-longcat"),
            ("meta", "MODEL_API_KEY meta"),
            ("mistral", "MISTRAL_API_KEY mistral"),
            ("moonshot", "KIMI_API_KEY MOONSHOT_API_KEY moonshot moonshot-ai moonshotai"),
            ("novita", "NOVITA_API_KEY novita novita-ai novitaai"),
            ("opencode", "OPENCODE_API_KEY OPENCODE_ZEN_API_KEY opencode"),
            ("parallel", "PARALLEL_API_KEY"),
            ("perplexity", "OPENROUTER_API_KEY PERPLEXITY_API_KEY"),
            ("pixverse", "pixverse"),
            ("qianfan", "QIANFAN_API_KEY qianfan"),
            (
                "qwen",
                "DASHSCOPE_API_KEY MODELSTUDIO_API_KEY QWEN_API_KEY QWEN_TOKEN_PLAN_API_KEY "
                "bailian-token-plan dashscope modelstudio qwen qwen-token-plan qwencloud",
            ),
            ("radius", "RADIUS_API_KEY radius"),
            ("searxng", "SEARXNG_BASE_URL"),
            ("stepfun", "STEPFUN_API_KEY stepfun stepfun-plan"),
            ("synthetic", "SYNTHETIC_API_KEY synthetic"),
            ("tavily", "TAVILY_API_KEY"),
            ("tencent", "TOKENHUB_API_KEY TOKENPLAN_API_KEY tencent-tokenhub tencent-tokenplan"),
            ("venice", "VENICE_API_KEY venice"),
            ("vercel-ai-gateway", "AI_GATEWAY_API_KEY vercel-ai-gateway"),
            ("volcengine", "VOLCANO_ENGINE_API_KEY volcengine volcengine-plan"),
            ("voyage", "VOYAGE_API_KEY voyage"),
            ("vydra", "VYDRA_API_KEY vydra"),
            ("xiaomi", "XIAOMI_API_KEY XIAOMI_TOKEN_PLAN_API_KEY xiaomi xiaomi-token-plan"),
            ("zai", "ZAI_API_KEY Z_AI_API_KEY z-ai z.ai zai"),
        )
    }
)
"""The catalogues of official external plugins inside the package: their providers with aliases, and all variables."""
