"""The plot of a benchmark: an SVG with two charts over the batch size, rate and memory. No library, no scripts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from jobs.sizes import UNITS
from workers.bench import Record, recommend

# Pixels of the drawing, which scales.
WIDTH, HEIGHT = 720, 500
LEFT, RIGHT = 64, 24      # margins of a chart
TOPS, TALL = (72, 296), 150      # where the charts begin, and their height
LABEL = 27                # a label of the batch size takes as much; the ones that would overlap are left out

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.paper { fill: #ffffff; }
.grid { stroke: #d8dee4; }
.line { fill: none; stroke-width: 2; }
.rate { stroke: #0969da; } circle.rate { fill: #0969da; }
.peak { stroke: #bc4c00; } circle.peak { fill: #bc4c00; }
.planned, .limit { stroke: #6e7781; stroke-dasharray: 5 4; }
.chosen { fill: none; stroke: #1f2328; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .paper { fill: #0d1117; }
  .grid { stroke: #30363d; }
  .rate { stroke: #58a6ff; } circle.rate { fill: #58a6ff; }
  .peak { stroke: #ffa657; } circle.peak { fill: #ffa657; }
  .planned, .limit { stroke: #8b949e; }
  .chosen { stroke: #e6edf3; }
}
"""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart's place and scales: batch sizes to the right by their logarithm, values upwards from 0."""

    drawing: Element
    top: int                  # pixels
    sizes: tuple[int, ...]
    most: float               # the value at the upper edge

    def x(self, size: int) -> float:
        """Return the place of a batch size."""
        first, last = math.log2(self.sizes[0]), math.log2(self.sizes[-1])
        share = (math.log2(size) - first) / (last - first) if last > first else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Return the place of a value."""
        return round(self.top + TALL * (1 - value / self.most), 1)

    def frame(self, title: str) -> None:
        """Draw title, grid and the labels of both axes."""
        _text(self.drawing, LEFT, self.top - 12, title, "title")
        for value in ticks(self.most):
            self.level(value, "grid")
            _text(self.drawing, LEFT - 8, self.y(value) + 4, f"{value:,g}", "end")
        free = 0.0
        for size in self.sizes:
            if self.x(size) >= free:
                _text(self.drawing, self.x(size), self.top + TALL + 18, str(size), "middle")
                free = self.x(size) + LABEL
        _text(self.drawing, WIDTH - RIGHT, self.top + TALL + 36, "batch size (pairs)", "end")

    def level(self, value: float, kind: str) -> None:
        """Draw a line across at a value."""
        y = str(self.y(value))
        SubElement(self.drawing, "line", {"class": kind, "x1": str(LEFT), "x2": str(WIDTH - RIGHT), "y1": y, "y2": y})

    def curve(self, values: Iterable[float], kind: str) -> None:
        """Join the values of all batch sizes by a line."""
        points = " ".join(f"{self.x(size)},{self.y(value)}" for size, value in zip(self.sizes, values, strict=True))
        SubElement(self.drawing, "polyline", {"class": f"line {kind}", "points": points})

    def points(self, values: Iterable[float], kind: str, unit: str) -> None:
        """Draw a dot at each value, which tells its value to who points at it."""
        for size, value in zip(self.sizes, values, strict=True):
            dot = self.dot(size, value, kind, 3.5)
            SubElement(dot, "title").text = f"batch size {size}: {value:,.4g} {unit}"

    def dot(self, size: int, value: float, kind: str, radius: float) -> Element:
        """Draw a circle at a value."""
        place = {"cx": str(self.x(size)), "cy": str(self.y(value)), "r": str(radius)}
        return SubElement(self.drawing, "circle", {"class": kind, **place})


def draw_plot(records: Sequence[Record], limit: int, title: str) -> str:
    """Draw rate and memory of some records; the recommended batch size has a ring. Return the text of an SVG file."""
    box = {"width": str(WIDTH), "height": str(HEIGHT)}
    drawing = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {HEIGHT}", **box})
    SubElement(drawing, "title").text = f"diptych bench: {title}"
    SubElement(drawing, "style").text = STYLE
    SubElement(drawing, "rect", {"class": "paper", **box})
    _text(drawing, LEFT, 28, title, "title")
    _draw_rates(drawing, records, limit)
    _draw_memory(drawing, records, limit)
    indent(drawing)
    return tostring(drawing, encoding="unicode") + "\n"


def _draw_rates(drawing: Element, records: Sequence[Record], limit: int) -> None:
    rates, chosen = [record.comparisons_per_minute for record in records], recommend(records, limit)
    chart = Chart(drawing, TOPS[0], _sizes(records), 1.1 * max(rates))
    chart.frame("comparisons per minute" + (f"; ring: --batch-size {chosen.batch_size}" if chosen else ""))
    chart.curve(rates, "rate")
    chart.points(rates, "rate", "comparisons/min")
    if chosen:
        chart.dot(chosen.batch_size, chosen.comparisons_per_minute, "chosen", 8)


def _draw_memory(drawing: Element, records: Sequence[Record], limit: int) -> None:
    unit, size = _unit(max(record.peak_bytes for record in records))
    peaks = [record.peak_bytes / size for record in records]
    planned = [record.planned_bytes / size for record in records]
    most = max(*peaks, *planned)
    near = limit / size < 2 * most      # farther off, its line would press the others flat
    chart = Chart(drawing, TOPS[1], _sizes(records), 1.1 * (max(most, limit / size) if near else most))
    chart.frame(f"peak memory ({unit}); dashed: planned{', and the limit' if near else ''}")
    if near:
        chart.level(limit / size, "limit")
    chart.curve(planned, "planned")
    chart.curve(peaks, "peak")
    chart.points(peaks, "peak", unit)


def ticks(most: float) -> list[float]:
    """Return three to seven round values from 0 up to `most`, 1, 2 or 5 times a power of ten apart."""
    power = 10.0 ** math.floor(math.log10(most / 6))
    step = next(step * power for step in (1, 2, 5, 10) if most / (step * power) <= 6)
    return [round(count * step, 12) for count in range(int(most / step) + 1)]


def _unit(size: int) -> tuple[str, int]:
    """Return the largest decimal unit of which a size in bytes has one."""
    return next((name, UNITS[name]) for name in ("TB", "GB", "MB", "KB") if size >= UNITS[name] or name == "KB")


def _sizes(records: Sequence[Record]) -> tuple[int, ...]:
    return tuple(record.batch_size for record in records)


def _text(drawing: Element, x: float, y: float, text: str, kind: str) -> None:
    SubElement(drawing, "text", {"class": kind, "x": str(x), "y": str(y)}).text = text
