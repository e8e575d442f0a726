"""Numbers for people: times, counts, sizes and bars of characters. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

NOTHING = "-"  # in the place of a number that there is not
_RISING = " ▁▂▃▄▅▆▇█"
_GROWING = " ▏▎▍▌▋▊▉█"
_BUCKET = 2**0.25  # a bucket of the daemon's histograms ends at so many times its beginning
# a unit's name, its length in seconds, and up to how many of it a time is told in it
_TIMES = (("µs", 1e-6, 1000), ("ms", 1e-3, 1000), ("s", 1.0, 120), ("min", 60.0, 120), ("h", 3600.0, 48))
_DAY = 86400.0
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def duration(seconds: float | None) -> str:
    """Print a time in at most 7 characters, with two or three digits: "4.2 µs", "310 ms", "12 s", "119 min"."""
    if seconds is None:
        return NOTHING
    if seconds <= 0:
        return "0 s"
    for unit, length, most in _TIMES:
        text = _short(seconds / length)
        if float(text) < most:
            return f"{text} {unit}"
    return f"{min(seconds / _DAY, 99999):.0f} d"


def _short(number: float) -> str:
    return f"{number:.1f}" if number < 9.95 else f"{number:.0f}"


def count(number: float) -> str:
    """Print a count in at most 9 characters: "18,300", "12.3 M"."""
    for unit, length in (("G", 1e9), ("M", 1e6)):
        if number >= 10 * length:
            return f"{number / length:,.1f} {unit}"
    return f"{number:,.0f}"


def size(number: float | None) -> str:
    """Print bytes in at most 8 characters: "512 B", "1.5 KiB", "29 MiB"."""
    if number is None:
        return NOTHING
    for unit in _SIZES[:-1]:
        if round(number) < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{_short(number)} {unit}"
        number /= 1024
    return f"{number:.0f} {_SIZES[-1]}"


def percent(share: float | None) -> str:
    """Print a share: 0.934 is "93 %"."""
    return NOTHING if share is None else f"{share * 100:.0f} %"


def printable(text: str) -> str:
    """Return a line that does nothing to a terminal: it may quote what somebody sent."""
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)


def bar(share: float | None, cells: int) -> str:
    """Draw a share of 1 as a horizontal bar, `cells` long when it is 1 or more."""
    eighths = round(max(0.0, min(share or 0.0, 1.0)) * cells * 8)
    return ("█" * (eighths // 8) + (_GROWING[eighths % 8] if eighths % 8 else "")).ljust(cells)


def bars(values: Sequence[float], height: int) -> list[str]:
    """Draw values as upright bars beside each other, the largest as high as there is room.

    Returns:
        `height` lines, the upper ones first. What is above 0 is seen, however small.
    """
    largest = max(values, default=0)
    eighths = [math.ceil(value / largest * height * 8) if value > 0 else 0 for value in values]
    return ["".join(_RISING[max(0, min(each - 8 * row, 8))] for each in eighths) for row in reversed(range(height))]


def columns(buckets: Iterable[tuple[float, int]], start: float, decades: int, each: int) -> list[float]:
    """Merge the buckets of a histogram into `each` columns per decade.

    A bucket that lies in two columns is shared between them, else some columns would hold more buckets than their
    neighbours and stand out. What is beyond the ends goes into the first and last column.

    Args:
        buckets: `(upper bound in seconds, count)` pairs.
        start: seconds, where the first column begins.

    Returns:
        `decades * each` counts.
    """
    found = [0.0] * (decades * each)
    for upper, number in buckets:
        high = math.log10(max(upper, start) / start) * each
        low = high - math.log10(_BUCKET) * each
        for column in range(math.floor(low), math.ceil(high)):
            part = min(high, column + 1) - max(low, column)
            found[max(0, min(column, len(found) - 1))] += number * part / (high - low)
    return found
