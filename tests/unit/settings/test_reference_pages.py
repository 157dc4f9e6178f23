"""The pages about settings and metrics, held to what they speak of: neither can fall behind."""

import re
import typing
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel

from roost.engine.queue import WorkQueue
from roost.settings import Settings
from roost.telemetry.agents import SERIES
from roost.telemetry.metrics import Metrics

DOCS = Path(__file__).parents[3] / "docs"
WORDS = {"string": "text", "integer": "whole number", "number": "number", "array": "list of text"}


def table(page: str) -> dict[str, list[str]]:
    """The rows of a page's tables by their first cell, without its backticks."""
    rows = {}
    for line in (DOCS / page).read_text().splitlines():
        if line.startswith("| `"):
            name, *rest = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            assert name not in rows, f"{name} stands there twice"
            rows[name.strip("`")] = rest
    return rows


# --- Settings -------------------------------------------------------------------------------------------------------


def settings_rows(model: type[BaseModel], prefix: str = "") -> dict[str, list[str]]:
    """Type and default of every key that holds a value, as the page writes them."""
    rows: dict[str, list[str]] = {}
    schema = model.model_json_schema()
    defaults = model().model_dump(mode="json", by_alias=True)
    for name, field in model.model_fields.items():
        key = field.alias or name
        below = block_of(field.annotation)
        if below is None:
            about = schema["properties"][key]
            about = about.get("anyOf", [about])[0]
            default = "every one" if defaults[key] is None else f"`{yaml_of(defaults[key])}`"
            rows[prefix + key] = [WORDS[about["type"]] + limits(about), default]
        elif typing.get_origin(field.annotation) is dict:
            rows |= settings_rows(below, f"{prefix}{key}.NAME.")
        else:
            rows |= settings_rows(below, f"{prefix}{key}.")
    return rows


def block_of(annotation: Any) -> type[BaseModel] | None:
    """The block that a field holds, whether by a name, or only when it is not left out."""
    inside = typing.get_args(annotation) or (annotation,)
    return next((i for i in inside if isinstance(i, type) and issubclass(i, BaseModel)), None)


def limits(about: dict[str, Any]) -> str:
    match about:
        case {"minimum": low, "maximum": high}:
            return f", {low} to {high}"
        case {"minimum": low}:
            return f", at least {low}"
        case {"exclusiveMinimum": low}:
            return f", more than {low}"
        case _:
            return ""


def yaml_of(value: Any) -> str:
    return (
        f"[{', '.join(value)}]" if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)
    )


def test_the_page_has_every_setting_with_its_type_and_default_and_no_other() -> None:
    page = table("reference/settings.md")
    assert {name: cells[:2] for name, cells in page.items()} == settings_rows(Settings)
    assert all(cells[2] for cells in page.values()), "a setting without a word about its effect"


# --- Metrics --------------------------------------------------------------------------------------------------------


def series() -> dict[str, list[str]]:
    """Type, labels and meaning of every series, by the name that Prometheus stores."""
    metrics = Metrics()
    metrics.watch_queue(WorkQueue(lambda: 0.0, None), lambda: 0.0)  # type: ignore[arg-type]
    rows: dict[str, list[str]] = {}
    for own in vars(metrics).values():
        if isinstance(own, MetricWrapperBase):
            [family] = own.describe()
            name = f"{family.name}_total" if isinstance(own, Counter) else family.name
            kind = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}[type(own)]
            rows[name] = [kind, labels(own._labelnames), family.documentation]
    for family in metrics.registry.collect():
        if family.name.startswith("workqueue_") or family.name == "controller_runtime_active_workers":
            for sample in family.samples:
                rows.setdefault(sample.name, [family.type, labels(sample.labels), family.documentation])
    for each in SERIES:
        name = f"{each.name}_total" if each.kind == "counter" else each.name
        rows[name] = [each.kind, labels(each.labels), each.text]
    return rows


def labels(names: Any) -> str:
    return ", ".join(f"`{n}`" for n in names)


def test_the_page_has_every_series_with_its_labels_and_meaning_and_no_other() -> None:
    assert table("reference/metrics.md") == {name: [*cells] for name, cells in series().items()}


def test_no_label_is_a_name_that_anybody_can_choose() -> None:
    """A label with a value for each object would grow with every object that ever was."""
    own = Metrics()
    used = {n for metric in vars(own).values() if isinstance(metric, MetricWrapperBase) for n in metric._labelnames}
    closed = {"controller", "result", "name", "code", "method", "op", "code_class", "phase", "kind", "org", "reason"}
    assert used <= closed


# --- Links ----------------------------------------------------------------------------------------------------------


def test_every_link_of_every_page_leads_somewhere() -> None:
    for page in DOCS.rglob("*.md"):
        text = page.read_text()
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (page.parent / target).resolve().exists(), f"{page.relative_to(DOCS)}: {target}"
