"""Structured logs: one JSON line per change of state. No secret value is ever given to a logger."""

import logging
import sys

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError


def set_up(level: str) -> None:
    """Configures structlog and the libraries' loggers to write JSON lines to standard error."""
    number = getattr(logging, level.upper())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=structlog.processors.JSONRenderer(),
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        )
    )
    # It says at every start that signals are ours, which is so on purpose.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)
    ignore_broken_requests()


def ignore_broken_requests() -> None:
    """Keeps out of the log what aiohttp tells of requests that no server can understand.

    It tells them as errors of ours, with a traceback, and quotes the bytes around the fault: a token may be in them.
    """
    logging.getLogger("aiohttp.server").addFilter(_ours)


def _ours(entry: logging.LogRecord) -> bool:
    error = entry.exc_info[1] if entry.exc_info else None
    return not isinstance(error, HttpProcessingError | RequestPayloadError | ConnectionError)
