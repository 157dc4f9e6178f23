"""How the endpoint says no: one shape for all of its routes."""

import orjson
from aiohttp import web
from multidict import CIMultiDict


class Problem(Exception):
    """An answer that is no success: `{"error": code, "message": text}`.

    Args:
        retry_after: seconds after which it is worth another try.
        allow: the methods that there are, when this one is not.
    """

    def __init__(
        self, status: int, code: str, message: str, retry_after: int | None = None, allow: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.retry_after, self.allow = retry_after, allow

    def answer(self) -> web.Response:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.allow is not None:
            headers["Allow"] = self.allow
        return json_answer(orjson.dumps({"error": self.code, "message": self.message}), self.status, headers)


def json_answer(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """An answer whose body is this JSON."""
    given: CIMultiDict[str] = CIMultiDict(headers or ())
    given["Content-Type"] = "application/json; charset=utf-8"
    return web.Response(body=body, status=status, headers=given)
