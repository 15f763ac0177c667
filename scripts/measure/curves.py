"""The measurements. Each is a function of the bench that returns its table; the first line of its text says what it is for.

Programs take turns in each round, so that a machine that changes changes for all; a row has the medians.
"""

from . import programs, records
from .live import idle, latency, queue, restart, scale, soak
from .profile import profile
from .report import Table, median

COST = (
    "CPU s",
    "CPU µs a record",
    "CPU / kcat",
    "CPU / floor",
    "wall s",
    "wall / kcat",
    "records/s",
    "MB/s",
    "peak MiB",
)


def _rounds(bench, what, runs):
    """Each of the runs in turn, as often as asked for: its costs by name."""
    costs = {name: [] for name in runs}
    for number in range(1, bench.rounds + 1):
        for name, run in runs.items():
            cost = run()
            bench.say(
                f"{what}, round {number} of {bench.rounds}, {name}: {cost.cpu:.2f} s CPU, {cost.wall:.2f} s, {cost.peak:.0f} MiB"
            )
            costs[name].append(cost)
    return costs


def _rows(table, labels, topic, costs):
    middle = {name: programs.Cost(*(median(column) for column in zip(*runs))) for name, runs in costs.items()}
    kcat, floor = middle.get("kcat"), middle.get("floor")
    for name, cost in middle.items():
        ratio = lambda mine, base: mine / base if base else ""
        table.add(
            *labels,
            name,
            cost.cpu,
            cost.cpu / topic.records * 1e6,
            ratio(cost.cpu, kcat and kcat.cpu),
            ratio(cost.cpu, floor and floor.cpu),
            cost.wall,
            ratio(cost.wall, kcat and kcat.wall),
            topic.records / cost.wall,
            topic.bytes / cost.wall / 1e6,
            cost.peak,
        )
        table.detail.append({"labels": labels, "program": name, "runs": costs[name]})


def _dumpers(bench, topic):
    return {"kcat": lambda: programs.kcat(bench, topic), "floor": lambda: programs.floor(bench, topic)}


def _against_dumpers(bench, topic, config=None):
    return {**_dumpers(bench, topic), "mtga": lambda: programs.mtga(bench, topic, config)}


def peers(bench):
    """mtga with everything on against kcat, floor.c and rsyslog, which only dump the values"""
    topic = bench.topic()
    table = Table(
        "peers",
        f"{topic.records:,} records of {topic.bytes // topic.records} bytes, {topic.partitions} partitions, Kafka's snappy; medians of {bench.rounds} rounds",
        ("program", *COST),
    )
    runs = _dumpers(bench, topic)
    if programs.rsyslog_is_there():
        runs["rsyslog"] = lambda: programs.rsyslog(bench, topic)
    else:
        bench.say("rsyslog is skipped: it is not here and could not be installed")
    runs["mtga"] = lambda: programs.mtga(bench, topic)
    _rows(table, (), topic, _rounds(bench, "peers", runs))
    table.notes.append(
        "the others neither transform nor validate, and are not exactly once; all are followed by a sync"
    )
    bench.drop(topic)
    return table


SIZES = (100, records.USUAL, 4 << 10, 64 << 10, 1 << 20)


def sizes(bench):
    """cost over the size of a record, the same bytes each time"""
    table = Table("sizes", "By the size of a record", ("bytes", "program", *COST))
    volume = bench.records * records.USUAL
    for size in SIZES:
        topic = bench.topic(count=max(200, min(2 * bench.records, volume // size)), size=size)
        _rows(table, (size,), topic, _rounds(bench, f"{size} bytes", _against_dumpers(bench, topic)))
        bench.drop(topic)
    return table


def partitions(bench):
    """cost over the number of partitions"""
    table = Table("partitions", "By the number of partitions", ("partitions", "program", *COST))
    for count in (1, 4, 64, 256):
        topic = bench.topic(partitions=count)
        _rows(table, (count,), topic, _rounds(bench, f"{count} partitions", _against_dumpers(bench, topic)))
        bench.drop(topic)
    return table


def codecs(bench):
    """cost over Kafka's codec, and with values that are snappy themselves"""
    table = Table("codecs", "By codec", ("codec", "program", *COST))
    for codec in ("none", "snappy", "lz4", "zstd", "gzip"):
        topic = bench.topic(codec=codec)
        _rows(table, (codec,), topic, _rounds(bench, codec, _against_dumpers(bench, topic)))
        bench.drop(topic)
    # Compressing in Python is slow: fewer different records, over and over.
    chunk = [records.snappy(record) for record in records.generate(5000)]
    topic = bench.topic(chunk=chunk, codec="none")
    runs = {"floor": lambda: programs.floor(bench, topic), "mtga": lambda: programs.mtga(bench, topic)}
    _rows(table, ("each value snappy",), topic, _rounds(bench, "snappy values", runs))
    table.notes.append("in the last rows each value is a raw snappy block of its own, and MB/s counts compressed bytes")
    bench.drop(topic)
    return table


MODES = {
    "live, batch": {},
    "live, batch, no fsync": {"sink": {"fsync": False}},
    "live, stream": {"sink": {"mode": "stream"}},
    "sealed": {"sink": {"visibility": "sealed"}},
    "sealed, gzip": {"sink": {"visibility": "sealed", "compression": "gzip"}},
    "sealed, zstd": {"sink": {"visibility": "sealed", "compression": "zstd"}},
    "strict validation": {"validation": "strict"},
    "with #uuid": {"uuid": True},
}


def modes(bench):
    """cost over live and sealed files, their compression, stream and batch, and without fsync"""
    topic = bench.topic()
    table = Table("modes", "By mode", ("mode", *COST, "CPU / live"))
    runs = {name: (lambda config=config: programs.mtga(bench, topic, config)) for name, config in MODES.items()}
    costs = _rounds(bench, "modes", {**_dumpers(bench, topic), **runs})
    _rows(table, (), topic, costs)
    live = median([cost.cpu for cost in costs["live, batch"]])
    table.rows = [(*row, row[1] / live) for row in table.rows]
    table.notes.append("without fsync is no mode to run: a power cut loses lines. It shows what syncing costs")
    bench.drop(topic)
    return table


ALL = {
    "peers": peers,
    "sizes": sizes,
    "partitions": partitions,
    "codecs": codecs,
    "modes": modes,
    "latency": latency,
    "idle": idle,
    "restart": restart,
    "queue": queue,
    "scale": scale,
    "soak": soak,
    "profile": profile,
}
