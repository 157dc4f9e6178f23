// What is wrong with an openclaw.json, by the schema and the catalogues of one version of OpenClaw. Run as
//   node check.mjs <openclaw.mjs of that version> <its schema> <openclaw.json>
// Prints a JSON list of "path: message". It never prints a value of the configuration except the name of a model.
// It uses the validator that OpenClaw itself depends on (typebox), and changes nothing.
import { readFileSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";

const [entry, schemaFile, configFile] = process.argv.slice(2);
const read = (file) => JSON.parse(readFileSync(file, "utf8"));
const { Errors } = await import(pathToFileURL(createRequire(entry).resolve("typebox/schema")).href);

const SCHEMAS = new Set(["properties", "patternProperties", "$defs", "definitions", "dependencies", "dependentSchemas"]);
const VALUES = new Set(["default", "const", "enum", "examples", "required"]);
const each = (object, change) => Object.fromEntries(Object.entries(object).map(([k, v]) => [k, change(v, k)]));

// The published schema is put together from those of plugins, whose references mean the plugin's own definitions, and
// it describes the configuration after defaults were filled in.
function repaired(node, definitions) {
  if (Array.isArray(node)) return node.map((item) => repaired(item, definitions));
  if (node === null || typeof node !== "object") return node;
  const known = { ...definitions, ...node.definitions, ...node.$defs };
  if (typeof node.$ref === "string") return repaired(known[node.$ref.split("/").pop()] ?? {}, known);
  const result = each(node, (value, key) => {
    if (VALUES.has(key)) return value;
    return SCHEMAS.has(key) ? each(value, (below) => repaired(below, known)) : repaired(value, known);
  });
  if (Array.isArray(result.required)) {
    result.required = result.required.filter((name) => result.properties?.[name]?.default === undefined);
  }
  return result;
}

function* bySchema(config) {
  const [valid, errors] = Errors(repaired(read(schemaFile), {}), config);
  if (!valid && errors.every(({ keyword }) => keyword === "additionalProperties")) yield "openclaw.json: is not valid";
  for (const { keyword, instancePath, message, params } of errors) {
    if (keyword === "additionalProperties") continue; // a consequence: the property itself is among the errors
    const path = instancePath.slice(1).split("/").map((p) => p.replaceAll("~1", "/").replaceAll("~0", "~")).join(".");
    const allowed = params?.allowedValues ?? (params && "allowedValue" in params ? [params.allowedValue] : undefined);
    const more = Array.isArray(allowed) ? ` (${allowed.slice(0, 12).join(", ")})` : "";
    yield `${path || "openclaw.json"}: ${keyword === "boolean" ? "is not known to this version" : message + more}`;
  }
}

const object = (value) => (value !== null && typeof value === "object" && !Array.isArray(value) ? value : {});

function* models(config) {
  const agents = object(config.agents);
  const places = [["agents.defaults.model", object(agents.defaults).model]];
  for (const [id, agent] of Object.entries(object(agents.entries))) places.push([`agents.entries.${id}.model`, object(agent).model]);
  for (const [path, model] of places) {
    const { primary, fallbacks } = typeof model === "string" ? { primary: model } : object(model);
    if (typeof primary === "string") yield [path, primary];
    for (const ref of Array.isArray(fallbacks) ? fallbacks : []) if (typeof ref === "string") yield [path, ref];
  }
}

// A catalogue does not know every model there is, and OpenClaw uses one that it does not know: only what it says is gone
// is gone. A provider that nobody describes is never found.
function* byCatalogue(config) {
  const plugins = object(config.plugins);
  const known = new Set(Object.keys(object(object(config.models).providers)));
  for (const [id, plugin] of Object.entries(object(plugins.entries))) if (object(plugin).enabled === true) known.add(id);
  const gone = new Map();
  const extensions = join(dirname(entry), "dist", "extensions");
  for (const name of readdirSync(extensions)) {
    let manifest;
    try {
      manifest = read(join(extensions, name, "openclaw.plugin.json"));
    } catch {
      continue; // no plugin
    }
    const catalogue = object(manifest.modelCatalog);
    for (const id of [
      ...(manifest.providers ?? []),
      ...(manifest.cliBackends ?? []),
      ...Object.keys(object(catalogue.providers)),
      ...Object.keys(object(catalogue.aliases)),
      ...Object.keys(object(manifest.providerAuthAliases)),
    ]) known.add(id);
    for (const { provider, model, reason, when } of catalogue.suppressions ?? []) {
      if (when === undefined) gone.set(`${provider}/${model}`, reason);
    }
  }
  const anyPlugin = (object(plugins.load).paths ?? []).length > 0;
  for (const [path, ref] of models(config)) {
    const [provider, ...rest] = ref.split("/");
    if (gone.has(ref)) yield `${path}: ${ref} is gone: ${gone.get(ref)}`;
    else if (rest.length > 0 && !known.has(provider) && !anyPlugin) {
      yield `${path}: ${ref} has a provider that this version does not bring: describe ${provider} in providers`;
    }
  }
}

const config = read(configFile);
process.stdout.write(JSON.stringify([...new Set([...bySchema(config), ...byCatalogue(config)])].slice(0, 20)));
