"""Metrics, logs, probes."""
