"""Turns what was measured into the tables that are printed. Measures nothing."""

import statistics
from collections.abc import Iterator, Sequence

from cells import MB, MORE_PROCESSES, PROCESSES, Results, Row, median
from targets import ASYNCIO, BARE, GASPAR, TARGETS

_HEADINGS = (
    f"{'':22}{'requests/s':>11}{'min':>9}{'max':>9}{'MB/s':>8}{'handler':>9}"
    f"{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'FIFO p95':>10}{'CPU us':>9}{'load us':>9}"
)
_BLANK = "-"


def table(rows: Sequence[Row], servers: Sequence[str], results: Results) -> Iterator[str]:
    """Yield the lines of the table: for each row each server, then gaspar's ratios to the others."""
    yield _HEADINGS
    for row in rows:
        yield ""
        yield row.title
        for server in servers:
            yield _server_line(row, server, results)
        for other in (BARE, ASYNCIO):
            if GASPAR in servers and other in servers:
                yield _ratio_line(row, other, results)


def _server_line(row: Row, server: str, results: Results) -> str:
    def cell(name: str, form: str, scale: float = 1.0) -> str:
        value = results.median(row.key, server, name)
        return _BLANK if not value else format(value * scale, form)

    rates = [value for value in results.values(row.key, server, "per_second") if value is not None]
    least, most = (format(pick(rates), ",.0f") if rates else _BLANK for pick in (min, max))
    return (
        f"  {server:20}{cell('per_second', ',.0f'):>11}{least:>9}{most:>9}"
        f"{cell('mb_per_second', ',.0f') if row.size >= MB else _BLANK:>8}{cell('share', '.3f'):>9}"
        f"{cell('p50', '.3f', 1e3):>9}{cell('p95', '.3f', 1e3):>9}{cell('p99', '.3f', 1e3):>9}"
        f"{cell('fifo_p95', '.1f', 1e3) if row.is_mixed else _BLANK:>10}"
        f"{cell('cpu_us', ',.0f'):>9}{cell('load_us', ',.0f'):>9}"
    )


def _ratio_line(row: Row, other: str, results: Results) -> str:
    def cell(name: str) -> str:
        value = results.ratio(row.key, name, GASPAR, other)
        return _BLANK if value is None else format(value, ".2f")

    title = f"{GASPAR} / {other}"
    return (
        f"  {title:20}{cell('per_second'):>11}{'':18}{cell('mb_per_second') if row.size >= MB else _BLANK:>8}"
        f"{cell('share'):>9}{cell('p50'):>9}{cell('p95'):>9}{cell('p99'):>9}{_BLANK:>10}{cell('cpu_us'):>9}"
    )


def starts(servers: Sequence[str], results: Results) -> Iterator[str]:
    """Yield the lines about starting: time to the first reply, memory."""
    yield f"{'start and memory':22}{'first reply s':>15}{'PSS MB':>16}{'further MB':>17}"
    for server in servers:
        found = [start for start in results.starts.get(server, []) if start is not None]
        cells = (
            median([start.first_reply for start in found]),
            median([start.pss / MB for start in found]),
            median([start.more_pss / MB for start in found]),
        )
        first, pss, more = (_BLANK if value is None else format(value, ".2f") for value in cells)
        yield f"  {server:20}{first:>15}{pss:>16}{more:>17}"


def disturbance(results: Results) -> str:
    """Return the line that says how much of the CPUs others had meanwhile."""
    found = [cell.others for cells in results.cells.values() for cell in cells if cell is not None]
    if not found:
        return "No load was run."
    return f"Other processes took {statistics.median(found):.1%} of the CPUs, at most {max(found):.1%} in one run."


def targets(results: Results) -> Iterator[str]:
    """Yield the verdict on each target that was measured: both numbers, and what the first was made from."""
    yield f"{'targets of gaspar':58}{'found':>9}{'wanted':>12}"
    for target in TARGETS:
        finding = target.find(results)
        if finding is None:
            yield f"  {'not run':9}{target.what}"
            continue
        verdict = "reached" if target.is_reached(finding.value) else "MISSED"
        wanted = f"{'>=' if target.is_least else '<='} {target.bound:.2f}"
        yield f"  {verdict:9}{target.what:53}{finding.value:>9.3f}{wanted:>12}   {finding.parts}"


LEGEND = f"""\
Medians over the rounds; a ratio is the median of the ratios within each round.
MB/s      payload bytes one way (each also comes back), 1 MB = 1,000,000 bytes
handler   CPU time that the handlers themselves took, of {PROCESSES} CPUs x wall
p50 ...   from before connecting to the reply's end-of-file; of two kinds of request: the short ones
FIFO p95  the same in a simulated perfect queue with {PROCESSES} servers: same sequence, no overhead,
          service times divided by the handler share that was measured
CPU us    of all the server's processes, per request
load us   of the load generator, per request; nearly all is the kernel's, for both ends of a connection
PSS       sum over the server's processes; what they share with the benchmark (the interpreter) counts in part
further   ({MORE_PROCESSES} processes - {PROCESSES} processes) / {MORE_PROCESSES - PROCESSES}"""
