"""The Fly Machines API: how it is called, what it answers, how it fails, and one list of things for everybody.

Modules: `client` (with its `limits` and `breaker`), `types`, `errors`, `refresher`. Nothing here decides anything about
an Agent, and nothing here tries a call a second time: planners do.
"""
