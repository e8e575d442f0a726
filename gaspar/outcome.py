"""What becomes of one call of the handler: a reply, a stream of parts, or an error. Runs in the consumer."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Generator
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from . import logs
from .errors import Code, failure

if TYPE_CHECKING:
    from .forkwatch import ForkWatch

log = logging.getLogger(__name__)

Body = bytes | memoryview
STREAM = -1  # in place of a code: the body is the handler's generator


def of_call(handle: Callable[[bytes], Any], payload: bytes, max_message: int, forks: ForkWatch) -> tuple[int, Any]:
    """Call the handler.

    Returns:
        (0, the reply), (STREAM, its generator) or (an error code, its JSON detail).
    """
    error: BaseException | None = None
    reply: Any = None
    try:
        reply = handle(payload)
    except BaseException as raised:  # SystemExit too: a handler does not decide over the consumer
        error = raised
    if forks.noted:
        forks.check()
    if error is not None:
        return _raised(error)
    if type(reply) is GeneratorType:
        return STREAM, reply
    return _checked(reply, max_message, "returned")


def of_stream(
    parts: Generator[Any, None, Any], send_part: Callable[[Body], bool], max_message: int, forks: ForkWatch
) -> tuple[int, Body]:
    """Run a handler's generator to its end, or close it when nobody wants more.

    Args:
        send_part: returns False if nobody does.

    Returns:
        (0, the last part, what the generator returned), or (an error code, its JSON detail).
    """
    try:
        while True:
            try:
                part = next(parts)
            except StopIteration as end:
                return (0, b"") if end.value is None else _checked(end.value, max_message, "returned")
            finally:
                if forks.noted:
                    forks.check()
            code, body = _checked(part, max_message, "yielded")
            wanted = not code and send_part(body)
            del part  # nothing of it is kept while the next is made
            if not wanted:
                parts.close()
                return (code, body) if code else _cancelled()
            del body
    except BaseException as raised:
        return _raised(raised)


def _checked(reply: Any, max_message: int, verb: str) -> tuple[int, Body]:
    if type(reply) is not bytes:
        try:
            reply = memoryview(reply).cast("B")
        except TypeError:
            hint = "; encode it first" if isinstance(reply, str) else ""
            return _bad_reply(f"handler {verb} {_shown(reply)}, not bytes or anything bytes-like{hint}")
    if len(reply) > max_message:
        return _bad_reply(f"handler {verb} {len(reply)} bytes, {max_message} allowed (--max-message)")
    return 0, reply


def _raised(error: BaseException) -> tuple[int, bytes]:
    tb = error.__traceback__
    while tb and tb.tb_next and tb.tb_frame.f_code.co_filename == __file__:
        tb = tb.tb_next  # it is told from the handler on
    error = error.with_traceback(tb)
    log.error("request %s: handler raised %s", logs.request, type(error).__name__, exc_info=error)
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    try:
        message = str(error)
    except Exception:
        message = "its message cannot be shown: __str__ raised"
    story = "".join(traceback.format_exception(error))
    why = failure(Code.HANDLER_ERROR, message, type=kind, traceback=story)
    return int(why.code), why.detail


def _shown(reply: object) -> str:
    if reply is None:
        return "None"
    try:
        text = repr(reply)
    except Exception:
        text = "?"
    kind = type(reply).__name__
    return f"{kind} {text if len(text) <= 80 else text[:77] + '...'}"


def _bad_reply(message: str) -> tuple[int, bytes]:
    log.error("request %s: %s", logs.request, message)
    why = failure(Code.BAD_REPLY, message)
    return int(why.code), why.detail


def _cancelled() -> tuple[int, bytes]:
    why = failure(Code.CANCELLED, "nobody wants the rest of the stream")
    return int(why.code), why.detail
