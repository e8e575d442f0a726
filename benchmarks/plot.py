"""Draws what was measured with matplotlib, which may not be installed. Measures nothing."""

from collections.abc import Sequence
from pathlib import Path

import contenders as who
from cells import Results
from rows import Row

_COLOURS = {"gaspar": "#1f6fb4", "bare": "#9a9a9a", "peer": "#e0a35c"}
_WIDTH, _LINE = 14, 0.28  # inches


def draw(rows: Sequence[Row], results: Results, path: Path) -> None:
    """Draw for each row the requests per second, least to most, and the latencies, p50 to p99.

    Raises:
        OSError, ValueError: the file cannot be written, or not in the format that its name says.
    """
    from matplotlib.figure import Figure

    drawn = {row: [each for each in row.entries if results.median(row.key, each.name, "p50")] for row in rows}
    drawn = {row: entries for row, entries in drawn.items() if entries}
    if not drawn:
        return
    heights = [len(entries) + 3 for entries in drawn.values()]
    figure = Figure((_WIDTH, _LINE * sum(heights)), layout="constrained")
    axes = figure.subplots(len(drawn), 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    for (row, entries), (rates, latencies) in zip(drawn.items(), axes, strict=True):
        rates.set_title(f"{row.title}: requests per second", loc="left", fontsize="medium")
        latencies.set_title("milliseconds, p50 to p99", loc="left", fontsize="medium")
        latencies.set_xscale("log")
        # The upper bound is off the scale by far: its bar is cut, and its figure says how long it would be.
        scale = [each for each in entries if each.contender is not who.BARE_KEPT] or entries
        edge = 1.25 * max(results.median(row.key, each.name, "per_second") or 0.0 for each in scale)
        rates.set_xlim(0, edge)
        for place, entry in enumerate(entries):
            is_bare = entry.contender in (who.BARE_ONESHOT, who.BARE_KEPT)
            kind = "gaspar" if entry.contender.is_gaspar else "bare" if is_bare else "peer"
            colour = _COLOURS[kind]
            found = [value for value in results.values(row.key, entry.name, "per_second") if value is not None]
            middle = results.median(row.key, entry.name, "per_second") or 0.0
            spread = [[middle - min(found)], [max(found) - middle]]
            rates.barh(place, middle, color=colour, xerr=spread, error_kw={"elinewidth": 1})
            rates.text(0.995 * edge, place, f"{middle:,.0f}", ha="right", va="center", fontsize="small")
            ends = [1e3 * (results.median(row.key, entry.name, name) or 0.0) for name in ("p50", "p99")]
            latencies.plot(ends, [place, place], color=colour, marker="|", linewidth=3)
        rates.set_yticks(range(len(entries)), [entry.name for entry in entries], fontsize="small")
        latencies.set_yticks(range(len(entries)), [])
        for axis in (rates, latencies):
            axis.invert_yaxis()
            axis.grid(axis="x", alpha=0.3)
    figure.savefig(path)
