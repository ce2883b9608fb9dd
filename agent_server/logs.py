"""The server's own log lines: on standard error for who runs it, and as `log` events for who asks over HTTP; secrets masked."""

import json
import logging
import sys
import time

from agent_server.events import Draft
from agent_server.events.log import EventLog
from agent_server.redaction import Secrets
from agent_server.settings import Settings


def to_stderr(settings: Settings, secrets: Secrets) -> None:
    """Sends every logger's lines to standard error, in the form of LOG_FORMAT, from LOG_LEVEL on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Masked(_Json() if settings.log_format == "json" else _Console(), secrets))
    handler.setLevel(settings.log_level)
    level = min(logging.INFO, handler.level)  # the event log has its own, from INFO on
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # What a library says of each request is noise, and may hold addresses with credentials.
    for name in ("httpx", "httpcore", "sse_starlette", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)


class LogEvents(logging.Handler):
    """Adds our own lines, and others' warnings, to the event log; not what is wrong with the log itself, which could go round for ever."""

    def __init__(self, log: EventLog) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        is_own = record.name.startswith("agent_server")
        if (record.levelno < logging.WARNING and not is_own) or record.name.startswith("agent_server.events."):
            return
        level = "ERROR" if record.levelno >= logging.ERROR else record.levelname
        self._log.say_from_any_thread(
            Draft("log", {"level": level, "text": record.getMessage(), "source": "server", "logger": record.name})
        )


class _Masked(logging.Formatter):
    def __init__(self, inner: logging.Formatter, secrets: Secrets) -> None:
        super().__init__()
        self._inner = inner
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return self._secrets.mask(self._inner.format(record))


class _Console(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "timestamp": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{record.msecs:03.0f}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info is not None:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
