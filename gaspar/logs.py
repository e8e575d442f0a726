"""How log lines look: for people, or as JSON for machines. Knows which request this process is busy with."""

from __future__ import annotations

import json
import logging
import time

request: object = None  # what the request that runs here is called; set by the consumer


def formatter(kind: str) -> logging.Formatter:
    """Return the formatter of `--log-format`: "text" or "json"."""
    if kind == "json":
        return _Json()
    made = _Text("%(asctime)s.%(msecs)03d [%(process)d] %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
    made.converter = time.localtime
    return made


class _Text(logging.Formatter):
    """One line for people. What a handler logs itself is told apart by its request."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        if request is not None and not record.name.startswith("gaspar."):
            record.message = f"request {request}: {record.message}"
        return super().formatMessage(record)


class _Json(logging.Formatter):
    """One JSON object in one line: time (UTC), level, logger, pid, message; request, exception and stack if any."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{when}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        named = getattr(record, "request", request)
        if named is not None:
            fields["request"] = str(named)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        return json.dumps(fields)
