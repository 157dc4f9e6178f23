"""The language models of a bundle as OpenClaw wants them: which model, and where each provider is had. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from roost_agent.contract.bundle import BundleModel, BundleProvider, ConfigBundle
from roost_agent.runtime import Refused
from roost_agent.runtime.openclaw.traits import Traits

__all__ = ["model", "plugins_kept_out", "providers"]

_PLAIN_API = "openai-completions"
"""What a provider speaks that says nothing else."""


def model(bundle: ConfigBundle) -> Mapping[str, Any]:
    """`agents.defaults` as far as it is about the model; empty leaves the choice to OpenClaw.

    Raises:
        Refused: a model is not named by its provider.
    """
    if (wanted := bundle.model) is None:
        return {}
    for field, name in _named(wanted):
        _provider_of(field, name)
    found: dict[str, Any] = {"model": {"primary": wanted.default, "fallbacks": list(wanted.fallbacks)}}
    if wanted.thinking is not None:
        found["thinkingDefault"] = wanted.thinking
    return found


def providers(bundle: ConfigBundle, traits: Traits) -> Mapping[str, Any]:
    """`models.providers`: a builtin one is changed where the bundle says so, any other is described in full.

    The protocol is always written out: without it OpenClaw sends some of its calls in another one, such as those to
    the small model that names a conversation.

    Raises:
        Refused: a provider is there twice, or OpenClaw does not know it and it has no URL.
    """
    found: dict[str, Any] = {}
    for provider in bundle.providers:
        if provider.id in found:
            raise Refused(f"providers {provider.id} is there twice: keep one of them")
        found[provider.id] = _provider(provider, bundle.model, traits)
    return found


def plugins_kept_out(config: Mapping[str, Any], variables: Iterable[str], traits: Traits) -> Iterator[str]:
    """The plugins that OpenClaw would try to fetch at each start because of a provider or variable of this name.

    Switched off, a provider of the same name is served by its description in `models.providers` alone.
    """
    models = config.get("models")
    described = models.get("providers") if isinstance(models, dict) else None
    names = {*variables, *(described if isinstance(described, dict) else ())}
    names |= {ref.partition("/")[0] for ref in _refs(config)}
    for plugin, triggers in traits.external.items():
        if not triggers.isdisjoint(names):
            yield plugin


def _provider(provider: BundleProvider, wanted: BundleModel | None, traits: Traits) -> Mapping[str, Any]:
    builtin = provider.id in traits.builtin
    if not builtin and provider.base_url is None:
        raise Refused(
            f"providers {provider.id} has no baseUrl, and OpenClaw {traits.version} brings no such provider: say where "
            "it is"
        )
    found: dict[str, Any] = {"models": [] if builtin else [{"id": m, "name": m} for m in _models_of(provider, wanted)]}
    if (api := provider.api or (traits.builtin[provider.id] if builtin else _PLAIN_API)) is not None:
        found["api"] = api
    if provider.base_url is not None:
        found["baseUrl"] = provider.base_url
    if provider.api_key_env is not None:
        found["apiKey"] = f"${{{provider.api_key_env}}}"
    return found


def _models_of(provider: BundleProvider, wanted: BundleModel | None) -> Iterable[str]:
    refs = (ref for _, ref in _named(wanted)) if wanted is not None else ()
    return dict.fromkeys(rest for owner, _, rest in (ref.partition("/") for ref in refs) if owner == provider.id)


def _named(wanted: BundleModel) -> Iterator[tuple[str, str]]:
    yield "model.default", wanted.default
    for ref in wanted.fallbacks:
        yield "model.fallbacks", ref


def _provider_of(field: str, ref: str) -> str:
    provider, slash, name = ref.partition("/")
    if not (provider and slash and name):
        raise Refused(f"{field} {ref[:100]} names no provider: write provider/model, such as anthropic/claude-sonnet-5")
    return provider


def _refs(config: Mapping[str, Any]) -> Iterator[str]:
    """The model that is used by default, and those to fall back on."""
    value: Any = config
    for key in ("agents", "defaults", "model"):
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for ref in (value.get("primary"), *_list(value.get("fallbacks"))):
            if isinstance(ref, str):
                yield ref


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
