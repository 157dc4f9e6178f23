"""What a machine without a stored token gets for the token that Fly made of it."""

from typing import Annotated

from pydantic import Field

from roost_agent.contract.wire import Count, Wire

__all__ = ["BOOTSTRAP_ENV", "TokenAnswer"]

BOOTSTRAP_ENV = "ROOST_BOOTSTRAP"
"""`Token` (also when it is not set) or `FlyOidc`: where the machine has its token from."""


class TokenAnswer(Wire):
    """The agent's heartbeat token, and the epoch that it is of."""

    token: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,512}$", repr=False)]
    epoch: Count
