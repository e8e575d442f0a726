"""What a client gets: a reply, and the receipt that comes with each answer, good or bad."""

from __future__ import annotations

from typing import NamedTuple


class Receipt(NamedTuple):
    """How long a request waited for a consumer and ran there; seconds. Both are 0 or exact to a microsecond."""

    waited: float
    ran: float  # 0: its handler was never called


class Reply(bytes):
    """The bytes of a reply, like any other bytes; `receipt` says how long its request waited and ran."""

    receipt: Receipt
