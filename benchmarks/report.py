"""Turns what was measured into the tables that are printed. Measures nothing."""

import statistics
from collections.abc import Iterator, Sequence

import contenders as who
from cells import MORE_PROCESSES, PROCESSES, Results, median
from rows import MB, Row
from targets import TARGETS

_NAME = 30
_HEADINGS = (
    f"{'':{_NAME}}{'requests/s':>11}{'+-':>6}{'MB/s':>8}{'handler':>9}"
    f"{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'FIFO p95':>10}{'CPU us':>9}{'load us':>9}{'PSS MB':>8}"
    f"{'of bare':>9}{'1-shot x':>10}{'framed x':>10}"
)
_BLANK = "-"


def table(rows: Sequence[Row], results: Results) -> Iterator[str]:
    """Yield the lines of the table: for each row each entry, with its ratios."""
    yield _HEADINGS
    for row in rows:
        yield ""
        yield row.title
        for entry in row.entries:
            if (row.key, entry.name) in results.cells:
                yield _line(row, entry.name, results)


def _line(row: Row, entry: str, results: Results) -> str:
    def cell(name: str, form: str, scale: float = 1.0) -> str:
        value = results.median(row.key, entry, name)
        return _BLANK if not value else format(value * scale, form)

    def ratio(of: str | None, to: str | None) -> str:
        value = results.ratio(row.key, "per_second", of, to) if of and to and of != to else None
        return _BLANK if value is None else format(value, ".2f")

    return (
        f"  {entry:{_NAME - 2}}{cell('per_second', ',.0f'):>11}{_spread(row, entry, results):>6}"
        f"{cell('mb_per_second', ',.0f') if row.size >= MB else _BLANK:>8}{cell('share', '.3f'):>9}"
        f"{cell('p50', '.3f', 1e3):>9}{cell('p95', '.3f', 1e3):>9}{cell('p99', '.3f', 1e3):>9}"
        f"{cell('fifo_p95', '.1f', 1e3) if row.is_mixed else _BLANK:>10}"
        f"{cell('cpu_us', ',.0f'):>9}{cell('load_us', ',.0f'):>9}{cell('pss', ',.0f', 1 / MB):>8}"
        f"{ratio(entry, row.first(who.BARE_ONESHOT)):>9}"
        f"{ratio(row.first(who.ONESHOT), entry):>10}{ratio(row.last(who.FRAMED), entry):>10}"
    )


def _spread(row: Row, entry: str, results: Results) -> str:
    rates = [value for value in results.values(row.key, entry, "per_second") if value is not None]
    if len(rates) < 2:
        return _BLANK
    return format((max(rates) - min(rates)) / 2 / statistics.median(rates), ".0%")


def starts(results: Results) -> Iterator[str]:
    """Yield the lines about starting: time to the first reply, memory."""
    yield f"{'start and memory':{_NAME}}{'first reply s':>15}{'PSS MB':>16}{'further MB':>17}"
    for server, several in results.starts.items():
        found = [start for start in several if start is not None]
        cells = (
            median([start.first_reply for start in found]),
            median([start.pss / MB for start in found]),
            median([start.more_pss / MB for start in found]),
        )
        first, pss, more = (_BLANK if value is None else format(value, ".2f") for value in cells)
        yield f"  {server:{_NAME - 2}}{first:>15}{pss:>16}{more:>17}"


def memory(results: Results) -> Iterator[str]:
    """Yield the lines about the front's memory."""
    yield f"{'100 MB messages, framed':{_NAME}}{'in flight MB':>15}{'RSS grew by MB':>16}{'kept MB':>17}"
    for each in results.memory:
        yield f"  {'front':{_NAME - 2}}{each.in_flight / MB:>15.0f}{each.peak / MB:>16.0f}{each.left / MB:>17.0f}"


def disturbance(results: Results) -> str:
    """Return the line that says how much of the CPUs others had meanwhile."""
    found = [cell.others for cells in results.cells.values() for cell in cells if cell is not None]
    if not found:
        return "No load was run."
    return f"Other processes took {statistics.median(found):.1%} of the CPUs, at most {max(found):.1%} in one run."


def targets(results: Results) -> Iterator[str]:
    """Yield the verdict on each target that was measured: both numbers, and what the first was made from."""
    yield f"{'targets of gaspar':62}{'found':>9}{'wanted':>12}"
    for target in TARGETS:
        finding = target.find(results)
        if finding is None:
            yield f"  {'not run':9}{target.what}"
            continue
        verdict = "reached" if target.is_reached(finding.value) else "MISSED"
        wanted = f"{'>=' if target.is_least else '<='} {target.bound:.2f}"
        yield f"  {verdict:9}{target.what:51}{finding.value:>9.3f}{wanted:>12}   {finding.parts}".rstrip()


LEGEND = f"""\
Medians over the rounds; a ratio is the median of the ratios within each round.
32, 4x32  requests in flight; of framed ones connections x in flight on each
+-        half of what lies between the slowest and the fastest round, of the median
MB/s      payload bytes one way (each also comes back), 1 MB = 1,000,000 bytes
handler   CPU time that the handlers themselves took, of {PROCESSES} CPUs x wall
p50 ...   until the reply is whole, from before connecting if each request has a connection of its own; of two kinds
          of request: the short ones; Client.map yields in order, so what waits behind a long one counts
FIFO p95  the same in a simulated perfect queue with {PROCESSES} servers: same sequence, no overhead,
          service times divided by the handler share that was measured
CPU us    of all the server's processes, per request; a pool's processes without the program that calls
load us   of what loads, per request: C (nearly all is the kernel's, for both ends of a connection), or for Client,
          aio.Client, gaspar.request, the pools, RPyC and zerorpc a program in Python
PSS       of the server's processes after the load (RPyC's have left by then, but the one that listens); what they
          share with others (the interpreter) counts in part
of bare   its requests/s, of the bare one-shot loop's
1-shot x  gaspar's requests/s one-shot, of its
framed x  gaspar's requests/s framed, of its
further   ({MORE_PROCESSES} processes - {PROCESSES} processes) / {MORE_PROCESSES - PROCESSES}"""
