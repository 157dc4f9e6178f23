"""Roost: a Kubernetes operator that keeps fleets of AI agents alive on Fly Machines."""

__version__ = "0.1.0"
