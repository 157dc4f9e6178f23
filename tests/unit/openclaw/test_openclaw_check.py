"""A version of OpenClaw is asked before it is given a configuration. The package is the real one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from openclaw_bundles import BOTH, REALISTIC, bundle, package, rendered, run
from roost_agent.runtime import Ran
from roost_agent.runtime.openclaw.check import problems, refusals
from roost_agent.runtime.openclaw.traits import of

ONE_OF = "must be equal to one of the allowed values"
ROLES = "gateway.roles.definitions"


def overlaid(overlay, **changes):
    return rendered(bundle(openclaw={"overlay": overlay}, **changes))


@BOTH
@pytest.mark.parametrize("name", ["every channel", "foreign providers", "overlaid"])
async def test_nothing_is_wrong_with_a_realistic_bundle(version, name):
    one = bundle(runtime={"kind": "OpenClaw", "version": version}, **REALISTIC[name])
    assert await problems(rendered(one), package(version), run=run) == []


@pytest.mark.parametrize(
    ("overlay", "found"),
    [
        ({"bogus": 1}, ["bogus: is not known to this version"]),
        ({"tools": {"exec": {"ask": "now"}}}, [f"tools.exec.ask: {ONE_OF} (off, on-miss, always)"]),
        ({"channels": {"discord": {"tokn": "x"}}}, ["channels.discord.tokn: is not known to this version"]),
        ({"session": []}, ["session: must be object"]),
        ({"plugins": {"entries": {"imap": {"config": {"accounts": {"a": {"hots": 1}}}}}}}, None),
        ({"gateway": {"roles": {"default": "x", "definitions": {"x": 1}}}}, [f"{ROLES}.x: must be object"]),
    ],
)
async def test_what_the_schema_has_against_it_is_named_by_path(overlay, found):
    said = await problems(overlaid(overlay), package("2026.9.6"), run=run)
    assert said
    assert found is None or said == found


@BOTH
async def test_what_has_a_default_need_not_be_given(version):
    overlay = {"channels": {"telegram": {"groupPolicy": None, "dmPolicy": None}}}
    one = overlaid(overlay, channels={"telegram": {"tokenEnv": "T_ONE"}}, secretEnv={"T_ONE": "token-1"})
    assert await problems(one, package(version), run=run) == []


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("nosuch/gpt", "agents.defaults.model: nosuch/gpt has a provider that this version does not bring"),
        ("google/gemini-1.5-pro", "agents.defaults.model: google/gemini-1.5-pro is gone: Google shut down"),
        ("anthropic/claude-of-next-year", None),
        ("openrouter/some/model", None),
        ("own/whatever", None),
    ],
)
async def test_a_provider_nobody_knows_and_a_model_that_is_gone_are_refused_but_no_newer_one(model, sentence):
    providers = [{"id": "own", "baseUrl": "https://llm.example.com/v1"}]
    said = await problems(rendered(bundle(model={"default": model}, providers=providers)), package("2026.9.6"), run=run)
    assert said == [] if sentence is None else [line for line in said if line.startswith(sentence)] == said != []


async def test_a_property_may_have_the_name_of_a_keyword(tmp_path):
    """As `gateway.roles.default` has: what stands below it is a schema like any other."""
    named = {"required": ["x"], "properties": {"x": {"default": 1}}}
    (tmp_path / "schema.json").write_text(json.dumps({"properties": {"default": named, "$ref": {"type": "string"}}}))
    installed = replace(package("2026.9.6"), schema=tmp_path / "schema.json")
    assert await problems({"default": {}, "$ref": "a"}, installed, run=run) == []
    assert await problems({"$ref": 1}, installed, run=run) == ["$ref: must be string"]


async def test_the_models_of_every_agent_in_the_escape_hatch_are_looked_at():
    overlay = {
        "agents": {"entries": {"main": {}, "two": {"model": {"primary": "nosuch/a", "fallbacks": ["nosuch/b"]}}}}
    }
    said = await problems(overlaid(overlay), package("2026.9.6"), run=run)
    assert [line.split(": ")[0] for line in said] == ["agents.entries.two.model"] * 2


async def test_a_plugin_that_is_asked_for_may_bring_its_provider():
    overlay = {"plugins": {"entries": {"groq": {"enabled": True}}}}
    one = overlaid(overlay, model={"default": "groq/llama"})
    assert await problems(one, package("2026.9.6"), run=run) == []


async def test_no_value_of_the_configuration_is_repeated():
    overlay = {"tools": {"exec": {"ask": "hunter2"}}, "models": {"providers": {"x": {"apiKey": {"source": "hunter2"}}}}}
    said = await problems(overlaid(overlay), package("2026.9.6"), run=run)
    assert said
    assert "hunter2" not in json.dumps(said)


async def test_a_check_that_fails_says_so_and_passes_nothing():
    broken = replace(package("2026.9.6"), schema=Path("/nonexistent/schema.json"))
    with pytest.raises(OSError, match=r"can't be checked: .*ENOENT"):
        await problems(rendered(bundle()), broken, run=run)

    async def silent(*_args, **_kwargs):
        return Ran(1, b"", b"Error: no such thing\n")

    async def hanging(*_args, **_kwargs):
        raise TimeoutError

    for ask in (problems, refusals):
        with pytest.raises(OSError, match="no such thing"):
            await ask(rendered(bundle()), broken, run=silent)
        with pytest.raises(OSError, match="no answer within"):
            await ask(rendered(bundle()), broken, run=hanging)


@BOTH
async def test_what_is_written_down_of_a_version_is_what_its_package_says(version):
    """The providers that it brings, the plugins that it would fetch, and what it takes up while it runs."""
    found = package(version)
    program = f"""
import {{ existsSync, readdirSync, readFileSync }} from "node:fs";
const dist = {json.dumps(str(found.entry.parent / "dist"))};
const own = {{}}, external = {{}};
for (const name of readdirSync(dist + "/extensions")) {{
  const file = `${{dist}}/extensions/${{name}}/openclaw.plugin.json`;
  if (!existsSync(file)) continue;
  const m = JSON.parse(readFileSync(file));
  const catalogue = m.modelCatalog?.providers ?? {{}};
  for (const id of [...(m.providers ?? []), ...(m.cliBackends ?? [])]) own[id] = catalogue[id]?.api ?? null;
}}
const files = readdirSync(dist).filter((f) => /^official-external-plugin-catalog-.*mjs$/.test(f));
for (const file of files) {{
  const functions = Object.values(await import(`${{dist}}/${{file}}`)).filter((f) => typeof f === "function");
  const list = functions.find((f) => f.name === "listOfficialExternalPluginCatalogEntries");
  for (const {{ openclaw }} of list?.() ?? []) {{
    const id = openclaw?.plugin?.id;
    if (!id || readdirSync(dist + "/extensions").includes(id)) continue;
    const names = [
      ...(openclaw.providers ?? []).flatMap((p) => [p.id, ...(p.aliases ?? []), ...(p.envVars ?? [])]),
      ...(openclaw.webSearchProviders ?? []).flatMap((p) => p.envVars ?? []),
    ];
    if (names.length) external[id] = [...new Set(names)];
  }}
}}
const plan = await import(`${{dist}}/${{readdirSync(dist).find((f) => /^config-reload-plan-.*mjs$/.test(f))}}`);
const kind = Object.values(plan).find((f) => f.name === "resolveConfigReloadMetadata");
const hot = {json.dumps(list(of(version).reload))}.map((path) => [path, kind(path).kind !== "restart"]);
console.log(JSON.stringify({{ own, external, hot }}));
"""
    argv = [str(found.node), "--input-type=module", "-e", program]
    ran = await run(argv, env={}, cwd=Path("/"), user=None, seconds=30)
    assert ran.code == 0, ran.stderr
    said, traits = json.loads(ran.stdout), of(version)
    assert dict(traits.builtin) == said["own"]
    assert dict(traits.reload) == dict(said["hot"])
    assert dict(traits.external) == {plugin: frozenset(names) for plugin, names in said["external"].items()}
