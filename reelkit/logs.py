"""Structured logging, set up once per process; the ids of the work are bound."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog
from pydantic import Field
from structlog.typing import EventDict, WrappedLogger

from reelkit.settings import Settings
from reelkit.tracing import current_trace_id

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["console", "json"]


class LogSettings(Settings):
    """What is logged, to stderr."""

    level: LogLevel = Field(
        default="info", description="Least level that is written; debug is for hunting a bug."
    )
    format: LogFormat = Field(
        default="console", description="console for people, json for log collectors."
    )


def setup_logging(*, level: LogLevel, fmt: LogFormat, process: str) -> None:
    """Sends structlog and the standard library's logging to stderr as key-value lines.

    Bind ids with ``structlog.contextvars.bind_contextvars(job_id=...)``; the trace id
    of the current span is added by itself.
    """
    threshold = getattr(logging, level.upper())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace_id,
    ]
    renderer: structlog.typing.Processor
    if fmt == "json":
        renderer = structlog.processors.JSONRenderer()
        # Without the frames' local variables: they hold prompts and tokens.
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        shared.append(structlog.processors.ExceptionRenderer(frames))
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(threshold, logging.INFO))
    logging.getLogger(process).setLevel(threshold)


def _add_trace_id(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    trace_id = current_trace_id()
    if trace_id is not None:
        event["trace_id"] = trace_id
    return event
