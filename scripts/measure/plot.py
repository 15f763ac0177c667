"""SVG from the CSV of scripts/bench: lines over a quantity, and bars. Plain, for light and dark pages, without a library."""

import csv
import math
import textwrap
from html import escape

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 62, 48
COLOURS = {"mtga": "#e8590c", "kcat": "#228be6", "floor": "#868e96", "rsyslog": "#40c057"}
OTHERS = ("#e8590c", "#228be6", "#40c057", "#be4bdb")
# Text and lines follow the page; the colours of the programs are seen on both.
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#6c757d}.title{font-size:15px;font-weight:600}.grid{stroke:#adb5bd;stroke-opacity:.5}"
    "@media(prefers-color-scheme:dark){text{fill:#dee2e6}.grid{stroke:#868e96}}"
)


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def number(value):
    """1.5, 20, 4 k, 1 M."""
    for scale, unit in ((1e6, " M"), (1e3, " k")):
        if abs(value) >= scale:
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}"


def size(value):
    """100 B, 4 KiB, 1 MiB."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= unit:
            return f"{value / unit:.4g} {name}"
    return f"{value:.4g} B"


class Axis:
    """Where a value lies between two edges of the picture, and where the marks are."""

    def __init__(self, values, begin, end, log=False, marks=None):
        self.log, self.begin, self.end = log, begin, end
        low, high = min(values), max(values)
        if log:
            self.low, self.high = math.log10(low), math.log10(high)
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            if marks is None:
                self.low, self.high = decades[0], max(decades[-1], decades[0] + 1)
            self.marks = marks or [10.0**decade for decade in decades]
        else:
            step = 10 ** math.floor(math.log10(high or 1))
            step = next(step * part for part in (0.1, 0.2, 0.25, 0.5, 1, 2) if high / (step * part) <= 6)
            self.low = 0 if marks is None else low
            self.high = math.ceil(high / step) * step if marks is None else high
            self.marks = marks or [step * index for index in range(round(self.high / step) + 1)]

    def at(self, value):
        value = math.log10(value) if self.log else value
        share = (value - self.low) / ((self.high - self.low) or 1)
        return self.begin + share * (self.end - self.begin)


def _text(x, y, text, anchor="middle", more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _frame(title, y_label, y_axis, x_label, body):
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        _text(LEFT, 20, title, "start", ' class="title"'),
    ]
    for mark in y_axis.marks:
        y = y_axis.at(mark)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 8, y + 4, number(mark), "end"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(_text(16, middle, y_label, more=f' transform="rotate(-90 16 {middle:.0f})"'))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label))
    return "\n".join([*parts, *body, "</svg>", ""])


def lines(title, x_label, y_label, series, log_x=False, log_y=False, x_marks=None, x_text=number):
    """`series`: {name: [(x, y)]}."""
    points = [point for line in series.values() for point in line]
    x_axis = Axis([x for x, _ in points], LEFT + 10, WIDTH - RIGHT - 10, log_x, x_marks)
    y_axis = Axis([y for _, y in points], HEIGHT - BOTTOM, TOP, log_y)
    body = [_text(x_axis.at(mark), HEIGHT - BOTTOM + 18, x_text(mark)) for mark in x_axis.marks]
    legend = LEFT
    for index, (name, line) in enumerate(series.items()):
        colour = COLOURS.get(name, OTHERS[index % len(OTHERS)])
        path = " ".join(f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in line)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(line) <= 20:
            body += [
                f'<circle cx="{x_axis.at(x):.1f}" cy="{y_axis.at(y):.1f}" r="3" fill="{colour}"/>' for x, y in line
            ]
        body.append(f'<path d="M{legend} 40h16" stroke="{colour}" stroke-width="3"/>')
        body.append(_text(legend + 22, 44, name, "start"))
        legend += 44 + 8 * len(name)
    return _frame(title, y_label, y_axis, x_label, body)


def bars(title, y_label, values, x_label=""):
    """`values`: [(label, value, name of the colour)]."""
    y_axis = Axis([value for _, value, _ in values], HEIGHT - BOTTOM, TOP)
    room = (WIDTH - LEFT - RIGHT) / len(values)
    body = []
    for index, (label, value, kind) in enumerate(values):
        x, y = LEFT + room * index, y_axis.at(value)
        colour = COLOURS.get(kind, OTHERS[0])
        body.append(
            f'<rect x="{x + room * 0.15:.1f}" y="{y:.1f}" width="{room * 0.7:.1f}" height="{HEIGHT - BOTTOM - y:.1f}" fill="{colour}"/>'
        )
        body.append(_text(x + room / 2, y - 5, number(round(value, 2))))
        words = textwrap.wrap(label, max(8, int(room / 7)))
        body += [_text(x + room / 2, HEIGHT - BOTTOM + 16 + 14 * line, part) for line, part in enumerate(words)]
    return _frame(title, y_label, y_axis, x_label, body)


def by_program(table, x, y):
    series = {}
    for row in table:
        series.setdefault(row["program"], []).append((float(row[x]), float(row[y])))
    return series


def peers(table):
    order = sorted(table, key=lambda row: float(row["CPU s"]))
    yield (
        "peers-cpu",
        bars(
            "CPU for the same topic",
            "CPU µs a record",
            [(row["program"], float(row["CPU µs a record"]), row["program"]) for row in order],
        ),
    )
    yield (
        "peers-memory",
        bars(
            "Peak memory, the whole topic waiting",
            "MiB",
            [(row["program"], float(row["peak MiB"]), row["program"]) for row in order],
        ),
    )


def sizes(table):
    marks = sorted({float(row["bytes"]) for row in table})
    of = lambda y: by_program(table, "bytes", y)
    yield (
        "sizes-throughput",
        lines(
            "Throughput by the size of a record",
            "size of a record",
            "MB/s",
            of("MB/s"),
            log_x=True,
            x_marks=marks,
            x_text=size,
        ),
    )
    yield (
        "sizes-cpu",
        lines(
            "CPU by the size of a record",
            "size of a record",
            "CPU µs a record",
            of("CPU µs a record"),
            log_x=True,
            log_y=True,
            x_marks=marks,
            x_text=size,
        ),
    )


def partitions(table):
    marks = sorted({float(row["partitions"]) for row in table})
    of = lambda y: by_program(table, "partitions", y)
    yield (
        "partitions-throughput",
        lines(
            "Throughput by the number of partitions",
            "partitions",
            "records/s",
            of("records/s"),
            log_x=True,
            x_marks=marks,
        ),
    )
    yield (
        "partitions-cpu",
        lines(
            "CPU by the number of partitions",
            "partitions",
            "CPU µs a record",
            of("CPU µs a record"),
            log_x=True,
            x_marks=marks,
        ),
    )


def codecs(table):
    yield (
        "codecs-cpu",
        bars(
            "CPU of mtga by codec",
            "CPU µs a record",
            [(row["codec"], float(row["CPU µs a record"]), "mtga") for row in table if row["program"] == "mtga"],
        ),
    )


def modes(table):
    ours = [row for row in table if row["mode"] not in ("kcat", "floor")]
    yield (
        "modes-cpu",
        bars(
            "CPU of mtga by mode",
            "CPU µs a record",
            [(row["mode"].removeprefix("live, "), float(row["CPU µs a record"]), "mtga") for row in ours],
        ),
    )


def scale(table):
    yield (
        "scale",
        bars(
            "Instances of one group on this machine",
            "records/s, all together",
            [(row["instances"], float(row["records/s"]), "mtga") for row in table],
            "instances",
        ),
    )


def soak(table):
    of = lambda y: [(float(row["seconds"]), float(row[y])) for row in table]
    yield "soak-memory", lines("Memory over time at a steady rate", "seconds", "MiB", {"RSS": of("RSS MiB")})
    yield (
        "soak-rate",
        lines(
            "Records a second, and the lag, over time",
            "seconds",
            "records",
            {"records/s": of("records/s"), "lag": of("lag records")},
        ),
    )


# By the name of the CSV file.
PLOTS = {
    "peers": peers,
    "sizes": sizes,
    "partitions": partitions,
    "codecs": codecs,
    "modes": modes,
    "scale": scale,
    "soak-series": soak,
}
