"""Says how a connection was lost, and whether the request may have been run. Pure."""

from __future__ import annotations

from .address import Address
from .errors import ConnectionLost
from .session import Session

CLOSED = "the daemon closed the connection"
NOT_SENT = ", it could not even be sent"
SHOWN = 48  # bytes of what came in place of a greeting


def why(error: OSError | UnicodeError) -> str:
    """Say why there is no connection, or none any more."""
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return "nobody listens there; is the daemon running?"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "the connection was reset"
    if isinstance(error, UnicodeError):
        return "not a host name"
    return error.strerror or str(error)


def no_greeting(seen: bytes, reason: str) -> str:
    """Say what came in place of a greeting."""
    got = repr(seen) if seen else "nothing"
    return f"expected the greeting of a gaspar daemon, got {got}, then {reason}"


def not_taken(where: Address, session: Session) -> bool:
    """True if the end of a connection, by a FIN, says that nothing unanswered was run.

    So ends a daemon that has said that it drains, between two answers. A Unix socket has no reset: there a daemon that
    was killed ends in the same way.
    """
    return session.leaving and not session.inside and session.error is None and not where.path


def lost(where: Address, reason: str, sent: bool) -> ConnectionLost:
    """Make the exception for a request, which may have been run if it was sent."""
    what = " before the reply was there; the request may have been run" if sent else " (the request was not run)"
    error = ConnectionLost(f"{where}: {reason}{what}")
    error.sent = sent
    return error
