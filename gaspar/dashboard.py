"""What `gaspar-top` shows: from the answers of a daemon's control address to lines of styled text.

Pure: no socket, no clock, no terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from rich.text import Text

from .figures import NOTHING, bar, bars, columns, count, duration, percent, printable, size
from .view import SORTS, Answer, Pane, View

Part = str | tuple[str, str]  # a text, or a text and its style

_LABEL = 12  # cells before a chart
_HISTORY = 60  # seconds, a cell each
_NOW = 8  # cells for a number behind a chart
_MOST = 16  # cells for the largest of the minute, behind that
_BESIDE = 2 * (_LABEL + _HISTORY + _NOW) + 2  # cells, from which on the charts stand beside each other
_TALLEST = 3  # lines of a chart
_FEWEST = 5  # lines that the table gets before the charts get theirs
_AXIS = 1e-6  # seconds, where the histograms' axis begins
_DECADES = 8
_QUANTILES = ("p50", "p90", "p99", "max")
_STATES = {"idle": "dim", "busy": "green", "aside": "yellow", "leaving": "magenta"}
_BAD_ENDS = {"crashed", "timeout", "memory"}
_BUSY_FRONT = 0.9  # of a CPU
_SLOW_HUB = 0.1  # seconds
_LONGEST = 3  # lines of what somebody says
_BAD = "bold white on red"

_KEYS = "q quit  s/S sort  ↑↓ choose  enter stack  space pause  r reload  ? help"
_STACK_KEYS = "q quit  esc back  ↑↓ another consumer  pgup/pgdn scroll  space pause  ? help"
_HELP = """\
s            sort by the next column            S           turn the order round
up, down     choose a consumer (also k, j)      pgup, pgdn  ten at once
enter        the chosen consumer's stack        esc         back; choose none
space        pause, and go on                   q           quit, as Ctrl-C does
r            load the handler's code anew, after a question
age          of the request that runs: green under 1 s, yellow under 10 s, red
aside        its long request holds no place any more: another has taken it
leaving      it is to be replaced after its request
private      memory that it has alone; shared: together with others
gen          the generation of the code: loading it anew makes the next
lag          how late the front's loop comes to what it has to do"""


class _Column(NamedTuple):
    name: str
    width: int  # cells; below 0: to the left
    cell: Callable[[Answer, float], Part]  # from a consumer and the time now
    title: str = ""
    least: int = 0  # cells that a screen must have to show it


_COLUMNS = (
    _Column("number", 5, lambda each, now: count(each["number"]), "#"),
    _Column("pid", 8, lambda each, now: str(each["pid"]), least=60),
    _Column("state", -10, lambda each, now: (printable(each["state"]), _STATES.get(each["state"], ""))),
    _Column("age", 8, lambda each, now: (duration(each["age"]), _heat(each["age"]))),
    _Column("done", 10, lambda each, now: count(each["done"])),
    _Column("cpu", 6, lambda each, now: percent(each["cpu"])),
    _Column("", 12, lambda each, now: (bar(each["cpu"], 10), "green"), least=120),
    _Column("private", 9, lambda each, now: size(each["private"]), least=70),
    _Column("shared", 9, lambda each, now: size(each["shared"]), least=70),
    _Column("started", 9, lambda each, now: duration(now - each["started"]), "up for", least=80),
    _Column("generation", 5, lambda each, now: str(each["generation"]), "gen", least=80),
    _Column("request", -22, lambda each, now: printable(str(each["request"] or NOTHING)), least=120),
)


def dashboard(stats: Answer, consumers: Sequence[Answer], view: View, width: int, height: int | None) -> list[Text]:
    """Lay out one screen.

    Args:
        stats: the answer to `stats`.
        consumers: those of the answer to `consumers`.
        view: what of it is to be seen.
        width: cells.
        height: lines; None: as many as it takes to show all consumers.

    Returns:
        The lines, `height` of them, none wider than `width`.
    """
    lines = _head(stats, view, width)
    if height is None:
        lines += [Text(), *_charts(stats, width, 1), *_outcomes(stats, width), Text()]
        lines += _table(stats, consumers, view, width, len(consumers) + 1)
    else:
        room = height - len(lines) - 1  # for the keys
        above = _above(stats, view, len(consumers), width, room)
        lines = _filled(lines + above + _pane(stats, consumers, view, width, room - len(above)), view, height)
    return _fitted(lines, width)


def _fitted(lines: list[Text], width: int) -> list[Text]:
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return lines


def _filled(lines: list[Text], view: View, height: int) -> list[Text]:
    """Put the last line of the screen where it belongs."""
    lines = lines[: max(0, height - 1)]
    keys = _STACK_KEYS if view.pane is Pane.STACK else _KEYS
    foot = Text(view.question, "bold reverse") if view.question else Text(printable(view.notice), "bold")
    return [*lines, *[Text() for _ in range(height - 1 - len(lines))], foot if foot else Text(keys, "dim")]


def _head(stats: Answer, view: View, width: int) -> list[Text]:
    health = stats["health"]
    badge = (" ok ", "black on green") if health["status"] == "ok" else (" FAILING ", _BAD)
    if view.trouble:  # what it said last is not known to be so
        badge = " NO ANSWER ", _BAD
    server, addresses = printable(stats["server"]).replace("/", " "), ", ".join(map(printable, stats["addresses"]))
    left = Text.assemble((server, "bold"), "  ", badge)
    left.append(f"  {addresses}")
    up = Text(f"pid {stats['pid']}, up {duration(stats['time'] - stats['started'])}", "dim")
    right = Text(" PAUSED ", "reverse") if view.paused else up
    left.truncate(max(0, width - len(right) - 2), overflow="ellipsis", pad=True)
    lines = [Text.assemble(left, "  ", right)]
    trouble = _wrapped(view.trouble or "; ".join(health["reasons"]), width, "bold red")
    return lines + trouble + _packed(_state(stats), width)


def _wrapped(text: str, width: int, style: str) -> list[Text]:
    lines = textwrap.wrap(printable(text), max(1, width), break_on_hyphens=False)
    return [Text(line, style) for line in lines[:_LONGEST]]


def _state(stats: Answer) -> Iterable[Sequence[Part]]:
    """Yield what the daemon has now, a sequence of parts for each thing."""
    waiting, front, connections = stats["waiting"], stats["front"], stats["connections"]
    yield "in flight ", (count(stats["in_flight"]), "bold")
    oldest: list[Part] = [", oldest ", (duration(waiting["oldest"]), _heat(waiting["oldest"]))]
    rest: list[Part] = [*oldest, f", {size(waiting['bytes'])}"] if waiting["now"] else []
    yield ["waiting ", (count(waiting["now"]), "bold"), *rest, f", most {count(waiting['most'])}"]
    yield [f"in {size(stats['bytes']['in'])}, out {size(stats['bytes']['out'])}"]
    states = ", ".join(f"{count(number)} {printable(state)}" for state, number in stats["consumers"].items() if number)
    yield f"consumers {count(stats['processes'])}: ", states or ("none", "bold red")
    ends = {reason: number for reason, number in stats["restarts"].items() if number}
    yield ["restarts ", (count(sum(ends.values())), "bold"), *_reasons(ends)]
    busy, late = (front["cpu"] or 0) >= _BUSY_FRONT, (front["lag_max"] or 0) >= _SLOW_HUB
    yield "front ", (percent(front["cpu"]), "bold red" if busy else "bold"), f", {size(front['memory'])}"
    yield "lag ", (duration(front["lag"]), "bold"), ", worst ", (duration(front["lag_max"]), "bold red" if late else "")
    yield [f"connections {count(connections['framed'])} framed, {count(connections['one_shot'])} one-shot"]


def _reasons(ends: Mapping[str, int]) -> Iterable[Part]:
    before = ": "
    for reason, number in ends.items():
        yield before
        yield f"{count(number)} {printable(reason)}", "yellow" if reason in _BAD_ENDS else ""
        before = ", "


def _outcomes(stats: Answer, width: int) -> list[Text]:
    requests = dict(stats["requests"])
    parts: list[list[Part]] = [["since start  ", (count(requests.pop("ok", 0)), "bold"), " ok"]]
    failed = sorted(((number, name) for name, number in requests.items() if number), reverse=True)
    parts += [[(f"{count(number)} {printable(name)}", "red")] for number, name in failed]
    return _packed(parts if failed else [*parts, ["none failed"]], width)


def _above(stats: Answer, view: View, consumers: int, width: int, room: int) -> list[Text]:
    """Lay out what is between head and pane, as much as there is room for: the pane goes before taller charts."""
    wanted, least = consumers + 1, _FEWEST
    if view.pane is not Pane.CONSUMERS:  # who looks at these wants to see all of it
        wanted = least = len(_HELP.splitlines()) if view.pane is Pane.HELP else _stack_height(view, room)
    outcomes = _outcomes(stats, width)
    for tall in range(_TALLEST, 0, -1):
        lines = [Text(), *_charts(stats, width, tall), *outcomes, Text()]
        if len(lines) + wanted <= room:
            return lines
    low = [*_charts(stats, width, 1), *outcomes]
    tries = ([*low, Text()], low, [*_history(stats, width, 1), *outcomes], outcomes)
    return next((lines for lines in tries if len(lines) + least <= room), [])


def _stack_height(view: View, room: int) -> int:
    """Return how many lines a stack takes; all there are while it is on its way, so that nothing jumps."""
    return room if view.stack is None else len(view.stack_lines()) + 1


def _charts(stats: Answer, width: int, tall: int) -> list[Text]:
    if width < _BESIDE:
        return _history(stats, width, tall) + _latency(stats, width, tall)
    middle = _LABEL + _HISTORY + _NOW + (_MOST if width >= _BESIDE + _MOST else 0)
    left, right = _history(stats, middle, tall), _latency(stats, width - middle - 2, tall)
    for sides in left, right:
        sides += [Text() for _ in range(max(len(left), len(right)) - len(sides))]
    for line in left:
        line.truncate(middle + 2, pad=True)
    return [Text.assemble(*pair) for pair in zip(left, right, strict=True)]


def _history(stats: Answer, width: int, tall: int) -> list[Text]:
    history = stats["history"]
    lines: list[Text] = []
    for title, name, style in (
        ("answered/s", "answered", "green"),
        ("failed/s", "failed", "red"),
        ("waiting", "waiting", "yellow"),
    ):
        values = history[name][-max(1, min(_HISTORY, width - _LABEL - _NOW)) :]
        now = stats["waiting"]["now"] if name == "waiting" else values[-1] if values else 0
        right: list[Part] = [(f"{count(now):>{_NOW}}", "bold" if now else "dim")]
        if width >= _LABEL + _HISTORY + _NOW + _MOST:
            right.append((f"  most {count(max(values, default=0))}", "dim"))
        lines += _chart(title, values, tall, [style] * len(values), right)
    return lines


def _latency(stats: Answer, width: int, tall: int) -> list[Text]:
    each = max(1, (width - _LABEL - _NOW * len(_QUANTILES)) // _DECADES)  # columns of a decade
    axis = "".join(f"{duration(_AXIS * 100**mark).replace('.0', ''):<{2 * each}}" for mark in range(_DECADES // 2))
    titles = "".join(f"{name:>{_NOW}}" for name in _QUANTILES)
    lines = [Text(f"{'last minute':<{_LABEL}}{axis[: each * _DECADES]:<{each * _DECADES}}{titles}", "dim")]
    styles = [_heat(_AXIS * 10 ** (column / each)) for column in range(_DECADES * each)]
    for name in ("wait", "run"):
        times = stats[name]["minute"]
        found = columns(times["buckets"], _AXIS, _DECADES, each)
        figures: list[Part] = [(f"{duration(times[name]):>{_NOW}}", _heat(times[name])) for name in _QUANTILES]
        lines += _chart(name, found, tall, styles, figures)
    return lines


def _chart(
    title: str, values: Sequence[float], tall: int, styles: Sequence[str], right: Sequence[Part]
) -> Iterable[Text]:
    """Yield the lines of upright bars, with a title before and figures behind the lowest."""
    for row, drawn in enumerate(bars(values, tall), 1):
        lowest = row == tall
        line = Text(f"{title if lowest else '':<{_LABEL}}")
        for cell, value, style in zip(drawn, values, styles, strict=True):
            if lowest and not value:
                line.append("·", "dim")
            else:
                line.append(cell, style)
        yield Text.assemble(line, *right) if lowest else line


def _pane(stats: Answer, consumers: Sequence[Answer], view: View, width: int, rows: int) -> list[Text]:
    if view.pane is Pane.HELP:
        return [Text(line) for line in _HELP.splitlines()][: max(0, rows)]
    if view.pane is Pane.STACK:
        return _stack(view, width, rows)
    return _table(stats, consumers, view, width, rows)


def _stack(view: View, width: int, rows: int) -> list[Text]:
    """Lay out the chosen consumer's stack."""
    if view.stack is None:
        return [Text(f"consumer {view.chosen}: asking for its stack", "bold")][: max(0, rows)]
    stack = view.stack
    if "error" in stack:
        return _wrapped(f"consumer {stack['number']}: {stack['error']}", width, "bold")[: max(0, rows)]
    runs: list[Part] = ["runs no request"]
    if stack["request"] is not None:
        runs = [f"request {printable(str(stack['request']))}, for ", (duration(stack["age"]), _heat(stack["age"]))]
    lines = [Text.assemble((f"consumer {stack['number']}, pid {stack['pid']}: ", "bold"), *runs)]
    found = view.stack_lines()
    first = max(0, min(view.scroll, len(found) - 1))  # the stack may have become shorter since
    lines += [Text(printable(line.expandtabs(4))) for line in found[first:]]
    more = len(lines) - rows
    if more <= 0 or rows <= 1:
        return lines[: max(0, rows)]
    return [*lines[: rows - 1], Text(f"… {more + 1} more lines", "dim")]


def _table(stats: Answer, consumers: Sequence[Answer], view: View, width: int, rows: int) -> list[Text]:
    shown = [column for column in _COLUMNS if column.least <= width]
    head = Text(" ")
    for column in shown:
        title = column.title or column.name
        if column.name == view.sort:
            title += "▼" if SORTS[view.sort] != view.backwards else "▲"
        head.append(_aligned(title, column.width), "bold cyan" if column.name == view.sort else "bold")
    everyone = view.ordered(consumers)
    room = rows - 1 if len(everyone) < rows else rows - 2  # below the head, and above the line that counts the rest
    at = next((at for at, each in enumerate(everyone) if each["number"] == view.chosen), 0)
    first = max(0, at - room + 1)
    lines = [head, *(_row(each, shown, stats["time"], view) for each in everyone[first : first + max(0, room)])]
    if len(everyone) > room:
        lines.append(Text(f"  … {len(everyone) - max(0, room)} more{f', {first} of them above' * (first > 0)}", "dim"))
    return lines[: max(0, rows)]


def _row(consumer: Answer, shown: Iterable[_Column], now: float, view: View) -> Text:
    chosen = consumer["number"] == view.chosen
    line = Text("▶" if chosen else " ", style="bold" if chosen else "")
    for column in shown:
        text, style = _pair(column.cell(consumer, now))
        # reversed colours would turn a bar inside out, and hide what they mean
        line.append(_aligned(text, column.width), "reverse" if chosen and column.name in ("number", "pid") else style)
    return line


def _aligned(text: str, width: int) -> str:
    return f"  {text}".ljust(-width) if width < 0 else text.rjust(width)


def _pair(part: Part) -> tuple[str, str]:
    return (part, "") if isinstance(part, str) else part


def _heat(seconds: float | None) -> str:
    """Return the colour of a time that somebody waits."""
    if seconds is None:
        return "dim"
    return "green" if seconds < 1 else "yellow" if seconds < 10 else "bold red"


def _packed(things: Iterable[Iterable[Part]], width: int) -> list[Text]:
    """Put as many things on each line as it holds; none is broken."""
    lines: list[Text] = []
    for thing in things:
        text = Text.assemble(*thing)
        if lines and lines[-1].cell_len + 3 + text.cell_len <= width:
            lines[-1].append("   ").append_text(text)
        else:
            lines.append(text)
    return lines
