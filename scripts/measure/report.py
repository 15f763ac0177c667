"""What was measured, for people (Markdown) and for programs (CSV, JSON), and on what."""

import csv
import datetime
import json
import os
import platform
import re
import subprocess
from pathlib import Path


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def _output(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()


def machine(bench):
    """Name and value of everything that a figure depends on."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    kib = next(int(line.split()[1]) for line in open("/proc/meminfo") if line.startswith("MemTotal"))
    kcat = re.sub(r"(?s).*Version (\S+) .*(librdkafka [^ ]+).*", r"\1 on \2", _output("kcat", "-V"))
    return {
        "machine": f"{os.cpu_count()} x {cpu}, {kib / 1048576:.0f} GiB, Linux {platform.release()}, "
        + _output("df", "--output=fstype", str(bench.work)).splitlines()[-1],
        "versions": f"{_output(str(bench.binary), '--version')}, kcat {kcat}, Apache Kafka 4.2.0 on the same machine",
        "date": datetime.date.today().isoformat(),
    }


def shown(value):
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"


class Table:
    """One measurement: `columns` of `rows`, a sentence that says what it is, notes below, and SVG by name."""

    def __init__(self, name, title, columns):
        self.name, self.title, self.columns = name, title, columns
        self.rows, self.notes, self.detail = [], [], []
        self.series, self.series_columns = [], ()
        self.pictures = {}

    def add(self, *values):
        self.rows.append(values)

    def markdown(self, about, command):
        lines = [f"### {self.title}", ""]
        lines.append("| " + " | ".join(self.columns) + " |")
        lines.append("|" + "---|" * len(self.columns))
        lines += ["| " + " | ".join(shown(value) for value in row) + " |" for row in self.rows]
        lines += ["", *(f"- {note}" for note in self.notes)]
        lines += [f"- machine: {about['machine']}; {about['versions']}; {about['date']}", f"- command: `{command}`", ""]
        return "\n".join(lines)

    def save(self, out, about, command):
        """NAME.md, NAME.csv (the table as numbers) and NAME.json (with every single run) in the directory `out`, and its
        pictures."""
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        text = self.markdown(about, command)
        (out / f"{self.name}.md").write_text(text)
        self._csv(out / f"{self.name}.csv", self.columns, self.rows)
        if self.series:
            self._csv(out / f"{self.name}-series.csv", self.series_columns, self.series)
        for name, picture in self.pictures.items():
            (out / f"{name}.svg").write_text(picture)
        whole = {
            "title": self.title,
            "columns": self.columns,
            "rows": self.rows,
            "runs": self.detail,
            "command": command,
            **about,
        }
        (out / f"{self.name}.json").write_text(json.dumps(whole, indent=1) + "\n")
        return text

    @staticmethod
    def _csv(path, columns, rows):
        with open(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows)
