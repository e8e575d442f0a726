"""Every exception of gaspar, and the number that each has on the wire.

GasparError
├── AddressError        also ValueError: an address that cannot be read
├── LimitError          also ValueError: a limit that is out of range
├── HandlerLoadError    the handler cannot be loaded or set up
├── BindError           also OSError: an address that cannot be listened on
├── DaemonError         the daemon did not start, or is in no state for what was asked of it
├── ConnectionLost      also ConnectionError: no connection, or no whole reply
└── RequestError        a request was answered with an error
    ├── BadFrame             1
    ├── TooBig               2
    ├── Overloaded           3
    ├── RequestTimeout       4  also TimeoutError
    ├── ConsumerLost         5
    ├── HandlerError         6
    ├── BadReply             7
    ├── Cancelled            8
    ├── ShuttingDown         9
    └── Unavailable         10
"""

from __future__ import annotations

import enum
import json
import sys
from typing import Any, NamedTuple

from .answer import Receipt

MAX_DETAIL = 64 * 1024  # bytes of an error's JSON on the wire


class Code(enum.IntEnum):
    """The error codes of the wire (docs/protocol.rst)."""

    BAD_FRAME = 1
    TOO_BIG = 2
    OVERLOADED = 3
    TIMEOUT = 4
    CONSUMER_LOST = 5
    HANDLER_ERROR = 6
    BAD_REPLY = 7
    CANCELLED = 8
    SHUTTING_DOWN = 9
    UNAVAILABLE = 10


class GasparError(Exception):
    """The base of all errors that gaspar raises."""


class AddressError(GasparError, ValueError):
    """An address is neither host:port, [v6]:port nor unix:PATH."""


class LimitError(GasparError, ValueError):
    """A limit's value cannot be read or is out of its range."""


class HandlerLoadError(GasparError):
    """The handler cannot be imported, found or set up.

    The message is one line; `traceback` is the whole story, or "".
    """

    def __init__(self, message: str, traceback: str = "") -> None:
        super().__init__(message)
        self.traceback = traceback


class BindError(GasparError, OSError):
    """An address cannot be listened on."""


class DaemonError(GasparError):
    """The daemon did not start, or is not in a state for what was asked of it."""


class ConnectionLost(GasparError, ConnectionError):
    """There was no connection, or it ended before the whole reply was there.

    `sent` says whether the request may have been run: False if it certainly did not reach the daemon whole.
    """

    sent = True


class RequestError(GasparError):
    """A request was answered with an error; `code` says which.

    What the daemon says of it, "" where it has nothing to say: `type` (of the exception that the handler raised,
    else the code's name), `traceback` (of the handler), `exit` (how the consumer ended), `stack` (where the
    handler was when its time was over). `receipt`: how long the request waited and ran, None if it did not
    come that far.
    """

    code: Code
    type = ""
    traceback = ""
    exit = ""
    stack = ""
    receipt: Receipt | None = None

    def _tell(self, title: str, story: str) -> None:
        """Let a long story be printed below the local traceback."""
        if not story:
            return
        if sys.version_info >= (3, 11):
            self.add_note(f"\n{title}\n{story.rstrip()}")
        else:
            self.story = f"\n\n{title}\n{story.rstrip()}"

    if sys.version_info < (3, 11):  # no notes yet
        story = ""

        def __str__(self) -> str:
            return super().__str__() + self.story


class BadFrame(RequestError):
    """The bytes break the protocol."""

    code = Code.BAD_FRAME


class TooBig(RequestError):
    """The message is longer than max_message."""

    code = Code.TOO_BIG


class Overloaded(RequestError):
    """The waiting queue or the connection's share is full."""

    code = Code.OVERLOADED


class RequestTimeout(RequestError, TimeoutError):
    """The time for this request has passed."""

    code = Code.TIMEOUT


class ConsumerLost(RequestError):
    """The consumer that ran the request died."""

    code = Code.CONSUMER_LOST


class HandlerError(RequestError):
    """The handler raised."""

    code = Code.HANDLER_ERROR


class BadReply(RequestError):
    """The handler returned something that is not bytes-like, or too long."""

    code = Code.BAD_REPLY


class Cancelled(RequestError):
    """The request was cancelled."""

    code = Code.CANCELLED


class ShuttingDown(RequestError):
    """The daemon is draining and takes no more requests."""

    code = Code.SHUTTING_DOWN


class Unavailable(RequestError):
    """No consumer can be started."""

    code = Code.UNAVAILABLE


_BY_CODE = {int(each.code): each for each in RequestError.__subclasses__()}
_STORIES = {
    "traceback": "In the daemon's handler:",
    "stack": "Where the daemon's handler was:",
    "exit": "",
}


def restore(code: int, detail: bytes, receipt: Receipt | None) -> RequestError:
    """Make the exception for an error that came over the wire, whatever state its detail is in."""
    try:
        fields: dict[str, Any] = json.loads(detail)
    except (ValueError, RecursionError):
        fields = {}
    if not isinstance(fields, dict):
        fields = {}
    text = {name: value for name, value in fields.items() if isinstance(value, str)}
    kind, message = text.get("type", ""), text.get("message", "")
    known = _BY_CODE.get(code)
    if known is HandlerError:
        message = ": ".join(filter(None, (kind, message)))
    error = known(message) if known else RequestError(f"error {code}, which this client does not know: {message}")
    if known is None:
        error.code = code  # type: ignore[assignment]  # a newer daemon's
    error.type, error.receipt = kind, receipt
    for name, title in _STORIES.items():
        if name in text:
            setattr(error, name, text[name])
            if title:
                error._tell(title, text[name])
    return error


class Failure(NamedTuple):
    """Why a request failed, as it travels inside the daemon: a code and its JSON detail.

    detail: UTF-8 JSON object {"type", "message", "traceback"?, "exit"?, "stack"?}, at most MAX_DETAIL bytes.
    """

    code: Code
    detail: bytes

    @property
    def message(self) -> str:
        """One line that says what happened."""
        return str(json.loads(self.detail).get("message", ""))


def failure(code: Code, message: str, **more: str) -> Failure:
    """Make a Failure; what is too long for the wire is cut at its front, where a traceback says least."""
    detail = {"type": code.name, "message": message[:4096]} | more
    encoded = json.dumps(detail).encode()
    if len(encoded) > MAX_DETAIL:
        # JSON escapes one character into at most 12 bytes (a surrogate pair)
        share = (MAX_DETAIL - 8192) // 12 // max(1, len(more))
        detail |= {name: text[-share:] for name, text in more.items()} | {"message": message[:512]}
        encoded = json.dumps(detail).encode()
    return Failure(code, encoded)
