"""Fleets: members, revisions, rollout."""
