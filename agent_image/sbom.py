"""Writes what a root directory is made of, as a CycloneDX 1.6 document: `sbom.py <root> >sbom.cdx.json`.

Read from what lies there, not from what should: the packages of Debian from dpkg's own list, Python's from their
metadata, npm's from each `package.json` below a `node_modules`, those that others bring along included. Hashes come
from the locks. The same root gives the same document.
"""

import base64
import json
import sys
from collections.abc import Iterator
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any
from urllib.parse import quote

Component = dict[str, Any]


def document(root: Path) -> dict[str, Any]:
    """The whole document of one root directory."""
    found = [*_debian(root), *_supervisor(root), *_python(root), *_npm(root)]
    if not found:
        raise SystemExit(f"sbom.py: there is nothing below {root} that it knows")
    components = {component["bom-ref"]: component for component in found}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": "roost-agent", "bom-ref": "roost-agent"}},
        "components": [components[ref] for ref in sorted(components)],
    }


def _component(purl: str, name: str, version: str, **more: Any) -> Component:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, **more}


def _debian(root: Path) -> Iterator[Component]:
    status = root / "var/lib/dpkg/status"
    for block in status.read_text().split("\n\n") if status.exists() else ():
        field = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != " ")
        if field.get("Status") == "install ok installed":
            name, version = field["Package"], field["Version"]
            yield _component(f"pkg:deb/debian/{name}@{quote(version)}?arch={field['Architecture']}", name, version)


def _supervisor(root: Path) -> Iterator[Component]:
    for build in root.glob("opt/*/build.json"):
        told = json.loads(build.read_text())
        purl = f"pkg:generic/roost-agent@{told['version']}?vcs_ref={told['commit']}"
        yield _component(purl, "roost-agent", told["version"]) | {"type": "application"}


def _python(root: Path) -> Iterator[Component]:
    for folder in root.glob("opt/*/*.dist-info"):
        metadata = PathDistribution(folder).metadata
        name, version = metadata["Name"], metadata["Version"]
        yield _component(f"pkg:pypi/{name.lower().replace('_', '-')}@{version}", name, version)


def _npm(root: Path) -> Iterator[Component]:
    hashes = dict(_npm_hashes(root))
    for node in root.glob("opt/*/bin/node"):
        version = json.loads((node.parents[1] / "package.json").read_text())["version"]
        yield _component(f"pkg:generic/node@{version}", "node", version) | {"type": "application"}
    for modules in root.glob("opt/**/node_modules"):
        for manifest in (*modules.glob("[!.@]*/package.json"), *modules.glob("@*/*/package.json")):
            told = json.loads(manifest.read_text())
            name, version = told.get("name"), told.get("version")
            if not name or not version:
                continue
            known = {"hashes": [hashes[name, version]]} if (name, version) in hashes else {}
            yield _component(f"pkg:npm/{quote(name)}@{version}", name, version, **known)


def _npm_hashes(root: Path) -> Iterator[tuple[tuple[str, str], dict[str, str]]]:
    """By name and version what the locks say, in the notation of CycloneDX."""
    for lock in (*root.glob("opt/*/package-lock.json"), *root.glob("opt/*/*/package-lock.json")):
        for path, told in json.loads(lock.read_text())["packages"].items():
            algorithm, _, value = told.get("integrity", "").partition("-")
            if algorithm == "sha512":
                name = told.get("name") or path.rpartition("node_modules/")[2]
                yield (name, told["version"]), {"alg": "SHA-512", "content": base64.b64decode(value).hex()}


if __name__ == "__main__":
    json.dump(document(Path(sys.argv[1])), sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")
