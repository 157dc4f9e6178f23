"""Agents: observe, plan, act, fold, destroy."""
