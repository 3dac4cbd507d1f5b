"""A picture of what `bode bench deliver` has measured, in SVG: medians as bars, the runs as whiskers.

Written without a drawing library: it is rectangles, lines and words, and a library for all kinds of pictures weighs
more than all the rest of the benchmarks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree

from broker.tools.bench_report import YARDSTICKS, Report, Spread

_WIDTH: Final = 960
_LEFT: Final = 310
_RIGHT: Final = 90
_ROW: Final = 26
_BAR: Final = 16
_MARGIN: Final = 24
_INK: Final = "#1f2933"
_PALE: Final = "#9aa5b1"
_BLUE: Final = "#2b6cb0"
_LIGHT_BLUE: Final = "#90cdf4"
_PARTS: Final = {
    "cpu_us.deliver": ("deliver", "#2b6cb0"),
    "cpu_us.ingest": ("ingest", "#dd6b20"),
    "cpu_us.postgresql": ("PostgreSQL", "#2f855a"),
    "cpu_us.rabbitmq": ("RabbitMQ", "#b83280"),
}


@dataclass(frozen=True, slots=True)
class _Bar:
    """A row of a panel: parts beside each other, with their colours, and a whisker."""

    label: str
    parts: tuple[tuple[float, str], ...]
    whisker: Spread
    value: str


class _Drawing:
    """An SVG that grows downwards."""

    def __init__(self) -> None:
        self._root = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg")
        self._background = self._add("rect", x=0, y=0, width=_WIDTH, height=0, fill="#ffffff")
        self._y = _MARGIN

    def heading(self, text: str, *, size: int = 15) -> None:
        self._text(text, _MARGIN, self._y + size, size=size, weight="bold")
        self._y += size + 10

    def legend(self, entries: Sequence[tuple[str, str]]) -> None:
        x = _LEFT
        for text, colour in entries:
            self._add("rect", x=x, y=self._y, width=12, height=12, fill=colour)
            self._text(text, x + 17, self._y + 11, size=12)
            x += 30 + 7 * len(text)
        self._y += 20

    def panel(self, bars: Sequence[_Bar]) -> None:
        longest = max((max(bar.whisker.highest, sum(part for part, _ in bar.parts)) for bar in bars), default=0) or 1
        scale = (_WIDTH - _LEFT - _RIGHT) / longest
        for bar in bars:
            self._row(bar, scale)
        self._add("line", x1=_LEFT, y1=self._y, x2=_WIDTH - _RIGHT, y2=self._y, stroke=_PALE)
        self._text("0", _LEFT, self._y + 14, size=11, anchor="middle", fill=_PALE)
        self._text(f"{longest:,.0f}", _WIDTH - _RIGHT, self._y + 14, size=11, anchor="middle", fill=_PALE)
        self._y += 34

    def svg(self) -> str:
        height = self._y + _MARGIN
        self._background.set("height", str(height))
        for name, value in {"width": _WIDTH, "height": height, "viewBox": f"0 0 {_WIDTH} {height}"}.items():
            self._root.set(name, str(value))
        ElementTree.indent(self._root)
        return ElementTree.tostring(self._root, encoding="unicode") + "\n"

    def _row(self, bar: _Bar, scale: float) -> None:
        top, middle = self._y + (_ROW - _BAR) / 2, self._y + _ROW / 2
        self._text(bar.label, _LEFT - 10, middle + 4, size=12, anchor="end")
        x = float(_LEFT)
        for value, colour in bar.parts:
            self._add("rect", x=x, y=top, width=value * scale, height=_BAR, fill=colour)
            x += value * scale
        low, high = _LEFT + bar.whisker.lowest * scale, _LEFT + bar.whisker.highest * scale
        if high - low >= 1:
            self._add("line", x1=low, y1=middle, x2=high, y2=middle, stroke=_INK)
            for end in (low, high):
                self._add("line", x1=end, y1=middle - 4, x2=end, y2=middle + 4, stroke=_INK)
        self._text(bar.value, max(x, high) + 6, middle + 4, size=12)
        self._y += _ROW

    def _text(
        self,
        text: str,
        x: float,
        y: float,
        *,
        size: int,
        anchor: str = "start",
        weight: str = "normal",
        fill: str = _INK,
    ) -> None:
        element = self._add("text", x=x, y=y, fill=fill)
        element.set("font-family", "sans-serif")
        element.set("font-size", str(size))
        element.set("font-weight", weight)
        element.set("text-anchor", anchor)
        element.text = text

    def _add(self, tag: str, **attributes: float | str) -> ElementTree.Element:
        shown = {
            name: value if isinstance(value, str) else f"{value:.1f}".rstrip("0").rstrip(".")
            for name, value in attributes.items()
        }
        return ElementTree.SubElement(self._root, tag, shown)


def picture(reports: Sequence[Report]) -> str:
    """The reports as one SVG document."""
    drawing = _Drawing()
    first = reports[0]
    drawing.heading(f"bode bench deliver: medians of {len(first.runs)} runs, lowest to highest", size=18)
    summaries = [(report.title, report.summary()) for report in reports]
    if "deliveries_per_second" in summaries[0][1]:
        drawing.heading("deliveries per second, full speed")
        drawing.panel([_plain(title, found["deliveries_per_second"], _BLUE, 0) for title, found in summaries])
        drawing.heading("CPU per delivery, all processes but the receiver, µs")
        drawing.legend(list(_PARTS.values()))
        drawing.panel([_stacked(title, found) for title, found in summaries])
    if "p50_ms" in summaries[0][1]:
        drawing.heading(f"latency at {first.rate:,.0f} deliveries/s, publisher's confirm to sink, ms")
        drawing.legend([("p50", _BLUE), ("p99", _LIGHT_BLUE)])
        bars = []
        for title, found in summaries:
            bars.append(_plain(title, found["p50_ms"], _BLUE, 1))
            bars.append(_plain("", found["p99_ms"], _LIGHT_BLUE, 1))
        drawing.panel(bars)
    drawing.heading("yardsticks beside them, a second")
    drawing.panel(
        [
            _plain(f"{words}, {size:,} bytes", Spread.of(rates), _PALE, 0)
            for name, (words, _) in YARDSTICKS.items()
            for size, rates in _rates(reports, name).items()
        ]
    )
    return drawing.svg()


def _rates(reports: Sequence[Report], yardstick: str) -> dict[int, list[float]]:
    """What a yardstick did in all runs, by the size of the payload."""
    rates: dict[int, list[float]] = {}
    for report in reports:
        found = [run.yardsticks[yardstick].per_second for run in report.runs]
        rates.setdefault(report.workload.payload_bytes, []).extend(found)
    return rates


def _plain(label: str, spread: Spread, colour: str, digits: int) -> _Bar:
    return _Bar(label, ((spread.median, colour),), spread, f"{spread.median:,.{digits}f}")


def _stacked(label: str, found: dict[str, Spread]) -> _Bar:
    parts = tuple((found[name].median, colour) for name, (_, colour) in _PARTS.items())
    return _Bar(label, parts, found["cpu_us"], f"{found['cpu_us'].median:,.0f}")
