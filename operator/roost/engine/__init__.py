"""The engine: work queue, lanes, alarms. Knows keys, not agents."""
