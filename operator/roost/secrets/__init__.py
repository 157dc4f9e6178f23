"""Secrets: resolved, versioned, fingerprinted; values are never kept."""
