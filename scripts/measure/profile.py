"""Where the CPU time goes: stacks of a run over a whole topic, as shares by thread and function and as a flame graph."""

import os
import re
import subprocess
from collections import Counter
from pathlib import Path

from .kafka import Failed
from .programs import TOP, Mtga
from .report import Table

INFERNO = "0.12.8"
RATE = 997  # samples a second and thread, by the clock: not every machine has the processor's counters
STACK = 16384  # bytes of stack with each of them
LEAST = 1.0  # percent that a function has to have of its own


def inferno():
    """The directory with the programs that make flame graphs, which are built when they are not there."""
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / f"mtga/inferno-{INFERNO}"
    if not (root / "bin/inferno-flamegraph").exists():
        subprocess.run(
            ["cargo", "install", "--quiet", "--locked", "--root", root, "--version", INFERNO, "inferno"], check=True
        )
    return root / "bin"


def recorded(bench, topic, data):
    """Samples of one run over the topic, in the file `data`."""
    perf = ["perf", "record", "-q", "-F", str(RATE), "-e", "cpu-clock", "--call-graph", f"dwarf,{STACK}", "-o", data, "--"]
    with Mtga(bench, topic.name) as service:
        service.start(under=perf).drain(topic.records)
        service.command("stop")
        if service.process.wait(60):
            raise Failed(f"perf record ended with {service.process.returncode}\n{service.log.read_text()[-2000:]}")


def folded(data, tools):
    """{(thread, function, ...): nanoseconds}; threads of one kind count as one."""
    script = subprocess.Popen(
        ["perf", "script", "--no-inline", "-i", data], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    lines = subprocess.run(
        [tools / "inferno-collapse-perf"], stdin=script.stdout, check=True, capture_output=True, text=True
    ).stdout
    if script.wait():
        raise Failed(f"perf script ended with {script.returncode}")
    stacks = Counter()
    for line in lines.splitlines():
        frames, taken = line.rsplit(" ", 1)
        thread, *functions = frames.split(";")
        # Of a thread that has ended perf knows the number only.
        thread = re.sub(r"-\d+$", "", re.sub(r"^:\d+$", "short-lived", thread))
        stacks[(thread, *functions)] += int(taken)
    return stacks


def profile(bench):
    """where the CPU time goes, by thread and function, and a flame graph (needs perf)"""
    subprocess.run([TOP / "scripts/install", "profile"], check=True)
    tools, topic = inferno(), bench.topic()
    stacks = Counter()
    for number in range(1, bench.rounds + 1):
        bench.say(f"profile, round {number} of {bench.rounds}")
        data = bench.work / "perf.data"
        recorded(bench, topic, data)
        stacks += folded(data, tools)
        data.unlink()
    bench.drop(topic)
    total = sum(stacks.values())
    if not total:
        raise Failed("perf saw nothing")
    threads, functions = Counter(), Counter()
    for stack, count in stacks.items():
        threads[stack[0]] += count
        functions[stack[0], stack[-1]] += count
    table = Table(
        "profile",
        f"Where the CPU time goes: {total / 1e9:.1f} s in {bench.rounds} runs over {topic.records:,} records",
        ("thread", "function", "share %"),
    )
    for thread, count in threads.most_common():
        if count * 100 / total < LEAST:
            continue
        table.add(thread, "", count * 100 / total)
        for (of, function), own in functions.most_common():
            if of == thread and own * 100 / total >= LEAST:
                table.add(thread, function, own * 100 / total)
    table.notes.append(
        f"{RATE} samples a second by the clock; a function's share is without what it calls, and what was inlined counts for"
        " its caller"
    )
    drawn = subprocess.run(
        [tools / "inferno-flamegraph", "--title", "CPU time of mtga by thread and function", "--minwidth", "0.3"],
        input="".join(f"{';'.join(stack)} {count}\n" for stack, count in sorted(stacks.items())),
        check=True,
        capture_output=True,
        text=True,
    )
    table.pictures["flame"] = drawn.stdout
    return table
