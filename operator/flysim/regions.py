"""Where machines can be: Fly's 18 regions of August 2026, and the aliases that a machine's region list may use."""

from dataclasses import dataclass
from typing import Any

from flysim import errors


@dataclass(frozen=True, slots=True)
class Region:
    code: str
    name: str
    latitude: float
    longitude: float
    geo: str


REGIONS = {
    region.code: region
    for region in (
        Region("ams", "Amsterdam, Netherlands", 52.37, 4.90, "europe"),
        Region("arn", "Stockholm, Sweden", 59.33, 18.07, "europe"),
        Region("bom", "Mumbai, India", 19.08, 72.88, "asia_pacific"),
        Region("cdg", "Paris, France", 48.86, 2.35, "europe"),
        Region("dfw", "Dallas, Texas (US)", 32.78, -96.80, "north_america"),
        Region("ewr", "Secaucus, NJ (US)", 40.79, -74.06, "north_america"),
        Region("fra", "Frankfurt, Germany", 50.11, 8.68, "europe"),
        Region("gru", "Sao Paulo, Brazil", -23.55, -46.63, "south_america"),
        Region("iad", "Ashburn, Virginia (US)", 39.04, -77.49, "north_america"),
        Region("jnb", "Johannesburg, South Africa", -26.20, 28.05, "africa"),
        Region("lax", "Los Angeles, California (US)", 34.05, -118.24, "north_america"),
        Region("lhr", "London, United Kingdom", 51.51, -0.13, "europe"),
        Region("nrt", "Tokyo, Japan", 35.68, 139.69, "asia_pacific"),
        Region("ord", "Chicago, Illinois (US)", 41.88, -87.63, "north_america"),
        Region("sin", "Singapore, Singapore", 1.35, 103.82, "asia_pacific"),
        Region("sjc", "San Jose, California (US)", 37.34, -121.89, "north_america"),
        Region("syd", "Sydney, Australia", -33.87, 151.21, "asia_pacific"),
        Region("yyz", "Toronto, Canada", 43.65, -79.38, "north_america"),
    )
}
NEAREST = "iad"
"""The region that a caller who names none is near to."""

_UNITED_STATES = ("iad", "ord", "dfw", "ewr", "lax", "sjc")
_ALIASES = {
    "apac": tuple(r.code for r in REGIONS.values() if r.geo == "asia_pacific"),
    "eu": tuple(r.code for r in REGIONS.values() if r.geo == "europe"),
    "na": tuple(r.code for r in REGIONS.values() if r.geo == "north_america"),
    "sa": tuple(r.code for r in REGIONS.values() if r.geo == "south_america"),
    "us": _UNITED_STATES,
    "usa": _UNITED_STATES,
    "any": tuple(REGIONS),
}


def resolve(wanted: str | None) -> list[str]:
    """The regions that a machine's comma list names, in order, aliases opened. Raises Refusal (400)."""
    if not wanted:
        return [NEAREST]
    codes: dict[str, None] = {}
    for word in wanted.split(","):
        name = word.strip()
        if name not in _ALIASES and name not in REGIONS:
            raise errors.invalid(f"region {name} not found")
        codes |= dict.fromkeys(_ALIASES.get(name, (name,)))
    return list(codes)


def one(wanted: str | None) -> str:
    """The one region of a volume: no lists, no aliases. Raises Refusal (400)."""
    if wanted and wanted not in REGIONS:
        raise errors.invalid(f"region {wanted} not found")
    return wanted or NEAREST


def rows() -> list[dict[str, Any]]:
    """The rows of `GET /v1/platform/regions`."""
    return [
        {
            "code": region.code,
            "name": region.name,
            "latitude": region.latitude,
            "longitude": region.longitude,
            "gateway_available": True,
            "requires_paid_plan": False,
            "deprecated": False,
            "geo_region": region.geo,
        }
        for region in REGIONS.values()
    ]
