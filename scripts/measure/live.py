"""The measurements of a running service: latency, idle cost, start after a kill, failure queue, several instances, soak."""

import contextlib
import multiprocessing
import os
import re
import subprocess
import threading
import time

from . import kafka, programs, records
from .kafka import Failed
from .programs import Mtga, memory, ticks
from .report import Table, median


def quantile(ordered, share):
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class Producer:
    """A steady stream of records from a process of its own: this one is busy with watching. `stamped` records carry the
    moment when they were handed to kcat, in microseconds of the monotonic clock."""

    def __init__(self, bench, topic, rate=None, stamped=False):
        self.over = multiprocessing.Event()
        self.sent = multiprocessing.Value("q", 0)
        linger = 1 if stamped else 20
        self.kcat = kafka.producer(bench.brokers, topic, "snappy", linger_ms=linger)
        bodies = records.generate(20000)
        lines = [body[:-2] + b',"sent":' if stamped else body + b"\n" for body in bodies]
        self.process = multiprocessing.Process(target=self.run, args=(lines, rate, stamped), daemon=True)
        self.process.start()
        # Only the child writes.
        self.kcat.stdin.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.kcat.kill()
        self.kcat.wait()

    def run(self, lines, rate, stamped):
        at = 0

        def following(count):
            nonlocal at
            if at + count > len(lines):
                at = 0
            part = lines[at : at + count]
            at += count
            if not stamped:
                return b"".join(part)
            end = b"%d}}\n" % (time.monotonic_ns() // 1000)
            return end.join(part) + end

        stream = self.kcat.stdin
        if rate is None:
            whole = b"".join(lines)
            while not self.over.is_set():
                stream.write(whole)
                self.sent.value += len(lines)
        else:
            self.sent.value = kafka.pace(stream, following, rate, self.over.is_set)
        stream.close()

    def stop(self):
        """How many records were produced, once all of them are acknowledged."""
        self.over.set()
        self.process.join()
        if self.process.exitcode or self.kcat.wait():
            raise Failed("the producer failed")
        return self.sent.value


def disk(bench, times=100, size=256 << 10):
    """Milliseconds of one fdatasync after a write of 256 KiB, in order."""
    path, taken = bench.work / "sync", []
    with open(path, "wb") as file:
        for _ in range(times):
            file.write(os.urandom(size))
            file.flush()
            begun = time.monotonic()
            os.fdatasync(file.fileno())
            taken.append((time.monotonic() - begun) * 1000)
    path.unlink()
    return sorted(taken)


def watch(list_files, seconds, alive):
    """Each file's length over time, looked at about every half millisecond: {path: [(moment in µs, length)]}."""
    seen = {}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        alive()
        for path, size in list_files():
            looks = seen.setdefault(path, [])
            if not looks or looks[-1][1] != size:
                looks.append((time.monotonic_ns() // 1000, size))
        time.sleep(0.0005)
    return seen


SENT = re.compile(rb'"sent":(\d+)')


def delays(seen, after):
    """Milliseconds from `sent` to the first look at which the whole line was in the file, of lines sent since `after`."""
    found = []
    for path, looks in seen.items():
        end = look = 0
        with open(path, "rb") as file:
            for line in file:
                end += len(line)
                while look < len(looks) and looks[look][1] < end:
                    look += 1
                if look == len(looks):
                    break
                sent = int(SENT.search(line).group(1))
                if sent >= after:
                    found.append((looks[look][0] - sent) / 1000)
    return sorted(found)


def scan(directory):
    def look():
        with os.scandir(directory) as entries:
            return [(entry.path, entry.stat().st_size) for entry in entries if entry.is_file()]

    return look


def latency(bench):
    """time from handing a record to the producer until its whole line is in a file, at a steady rate"""
    seconds, rate = (6, 20000) if bench.quick else (30, 50000)
    syncs = disk(bench)
    table = Table(
        "latency",
        f"Produce to visible line at {rate:,} records/s",
        ("reader", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "longest ms", "lines"),
    )

    def measured(name, directory, alive, topic):
        with Producer(bench, topic.name, rate, stamped=True) as producer:
            begun = time.monotonic_ns() // 1000
            seen = watch(scan(directory), seconds, alive)
            sent = producer.stop()
        found = delays(seen, begun + 2_000_000)
        if len(found) < rate * (seconds - 4):
            raise Failed(f"{name}: only {len(found)} lines were seen of {sent}")
        return name, *(quantile(found, share) for share in (0.5, 0.9, 0.99, 0.999)), found[-1], len(found)

    def by_kcat():
        topic = bench.empty_topic()
        directory = bench.work / "kcat"
        directory.mkdir(exist_ok=True)
        with open(directory / "out", "wb") as out:
            command = ["kcat", "-C", "-u", "-q", "-b", bench.brokers, "-t", topic.name, "-o", "beginning"]
            reader = subprocess.Popen(command, stdout=out)
        try:
            return measured(
                "kcat -C -u", directory, lambda: programs.running(reader, "kcat", directory / "none"), topic
            )
        finally:
            programs.end(reader)
            bench.drop(topic)

    # A broker that has just begun takes half a second for what it does in milliseconds later.
    bench.say("latency: warming the broker up")
    by_kcat()
    for mode in ("stream", "batch"):
        topic = bench.empty_topic()
        with Mtga(bench, topic.name, {"sink": {"mode": mode}}) as service:
            service.start().wait(lambda: (service.ask("Status") or {}).get("state") == "consuming", "it consumes")
            row = measured(
                f"mtga, {mode}",
                service.home / "data",
                lambda: programs.running(service.process, "mtga", service.log),
                topic,
            )
            table.add(*row)
            service.stop()
        bench.drop(topic)
    table.add(*by_kcat())
    table.notes.append(
        f"one fdatasync of 256 KiB on this disk: p50 {quantile(syncs, 0.5):.1f} ms, p99 {quantile(syncs, 0.99):.1f} ms"
    )
    table.notes.append(
        "the producer (kcat, `linger.ms` 1), the broker and the reader share the processors; what kcat shows is theirs alone; "
        "the broker was warmed up by one such run before"
    )
    return table


def used_ns(pid):
    """Nanoseconds on a processor and voluntary waits of all threads there are."""
    run = waits = 0
    for task in os.scandir(f"/proc/{pid}/task"):
        run += int(open(f"{task.path}/schedstat").read().split()[0])
        for line in open(f"{task.path}/status"):
            if line.startswith("voluntary_ctxt"):
                waits += int(line.split()[1])
    return run, waits


def idle(bench):
    """what waiting for records costs"""
    seconds = 5 if bench.quick else 30
    table = Table("idle", f"Without records, over {seconds} s", ("partitions", "% of a core", "wake-ups/s", "RSS MiB"))
    for partitions in (4, 64):
        topic = bench.topic(count=1000, partitions=partitions)
        with Mtga(bench, topic.name) as service:
            service.start().drain(topic.records)
            time.sleep(3)
            (run, waits), begun = used_ns(service.process.pid), time.monotonic()
            time.sleep(seconds)
            (run_then, waits_then), took = used_ns(service.process.pid), time.monotonic() - begun
            table.add(
                partitions,
                (run_then - run) / took / 1e7,
                (waits_then - waits) / took,
                memory(service.process.pid, "VmRSS"),
            )
            service.stop()
        bench.drop(topic)
    return table


def restart(bench):
    """from the start after a kill -9 to the first new line, with much written since the last checkpoint"""
    tail = (40 if bench.quick else 500) * 10**6
    topic = bench.topic(count=max(bench.records, tail // 400))
    table = Table(
        "restart",
        f"Start after kill -9 with {tail / 1e6:.0f} MB written since the last checkpoint",
        ("run", "since the checkpoint MB", "consuming after s", "first new line after s"),
    )
    # No checkpoint but the one of the start.
    config = {"store": {"checkpoint": "1h"}}
    for run in range(1, bench.rounds + 1):
        with Mtga(bench, topic.name, config) as service:
            service.start().wait(lambda: service.size() >= tail, "the tail is written", 0.005)
            service.kill()
            size = service.size()
            service.start()
            service.wait(lambda: (service.ask("Status") or {}).get("state") == "consuming", "it consumes", 0.005)
            consuming = time.monotonic() - service.begun
            # Recovery completes at most a block, which is smaller than this.
            service.wait(lambda: service.size() > size + 2 * 10**6, "a new line", 0.005)
            table.add(run, size / 1e6, consuming, time.monotonic() - service.begun)
            service.stop()
    bench.drop(topic)
    return table


def queue(bench):
    """a failure queue of a million records"""
    count = 50000 if bench.quick else 1000000
    topic = bench.topic(count=count, chunk=records.rejected(10000))
    table = Table("queue", f"{count:,} rejected records of {topic.bytes // count} bytes", ("what", "figure"))
    with Mtga(bench, topic.name) as service:
        cost = service.start().drain(count)
        table.add("rejects/s into the queue, durable", count / cost.wall)
        table.add("CPU µs a reject", cost.cpu / count * 1e6)
        table.add("peak MiB", cost.peak)
        table.add(
            "store and journal on the disk, MB",
            sum(file.stat().st_size for file in (service.home / "tmp/store").rglob("*") if file.is_file()) / 1e6,
        )

        def timed(*words):
            taken = []
            for _ in range(5):
                begun = time.monotonic()
                said = service.command(*words)
                taken.append((time.monotonic() - begun) * 1000)
            return median(taken), said

        took, said = timed("failure_queue_count")
        if int(said) != count:
            raise Failed(f"the failure queue has {said} records of {count}")
        table.add("`failure_queue_count`, ms", took)
        for limit in (50, 1000):
            table.add(
                f"`failure_queue_list --limit {limit}`, ms", timed("failure_queue_list", "--limit", str(limit))[0]
            )
        table.add("`offset_checker`, ms", timed("offset_checker")[0])
        service.stop()
        service.start().wait(lambda: (service.ask("Status") or {}).get("state") == "consuming", "it consumes", 0.005)
        table.add("start with that queue, consuming after s", time.monotonic() - service.begun)
        service.stop()
    bench.drop(topic)
    return table


def scale(bench):
    """one to three instances of a group on this machine"""
    topic = bench.topic(partitions=12)
    table = Table(
        "scale",
        f"Instances of one group, {topic.partitions} partitions",
        ("instances", "records/s", "MB/s", "CPU µs a record", "wall s", "peak MiB, all"),
    )
    for count in (1, 2, 3):
        runs = [_instances(bench, topic, count) for _ in range(bench.rounds)]
        cpu, wall, peak = (median(column) for column in zip(*runs))
        table.add(count, topic.records / wall, topic.bytes / wall / 1e6, cpu / topic.records * 1e6, wall, peak)
        table.detail.append({"instances": count, "runs": runs})
    table.notes.append(
        "they share the processors with each other and the broker; the clock runs from the first record taken"
    )
    bench.drop(topic)
    return table


def _instances(bench, topic, count):
    group = {"kafka": {"assignment": "group", "group_id": f"scale-{count}-{time.time_ns()}"}}
    services = [Mtga(bench, topic.name, group, f"home-{number}") for number in range(count)]
    try:
        for service in services:
            service.start()
        first = services[0]
        consumed = lambda: sum(service.consumed() for service in services)
        first.wait(lambda: consumed() > 0, "the group consumes", 0.02)
        begun = time.monotonic()
        done = lambda: consumed() >= topic.records and all(service.ask("KafkaLag") == 0 for service in services)
        first.wait(done, "the lag of the group is 0")
        wall = time.monotonic() - begun
        pids = [service.process.pid for service in services]
        cost = programs.Cost(sum(map(ticks, pids)), wall, sum(map(memory, pids)))
        for service in services:
            service.stop()
        lines = sum(programs.line_count(file) for service in services for file in service.files())
        if lines != topic.records:
            raise Failed(f"{count} instances wrote {lines} lines of {topic.records}")
        return cost
    finally:
        for service in services:
            service.__exit__()


@contextlib.contextmanager
def collecting(service):
    """Does what a collector does: removes finished files, here all but the newest two."""
    over = threading.Event()

    def collect():
        while not over.wait(2):
            files = sorted((path.stat().st_mtime, path) for path in service.files())
            for _, path in files[:-2]:
                path.unlink()

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def soak(bench):
    """memory and lag over time, at 80 % of what the service keeps up with beside the producer"""
    seconds = bench.minutes * 60
    # The broker keeps a quarter of a gigabyte a partition, and files are removed as they are finished.
    topic = bench.empty_topic(retention_bytes=256 << 20, segment_bytes=64 << 20)
    table = Table(
        "soak", f"{bench.minutes:g} minutes at a steady rate", ("what", "first third", "second third", "last third")
    )
    table.series_columns = ("seconds", "RSS MiB", "lag records", "records/s", "CPU %")
    with Mtga(bench, topic.name) as service:
        service.start().wait(lambda: (service.ask("Status") or {}).get("state") == "consuming", "it consumes")
        with collecting(service):
            rate = bench.rate or 0.8 * _sustained(bench, service, topic)
            bench.say(f"soak at {rate:,.0f} records/s")
            with Producer(bench, topic.name, rate) as producer:
                series = _sampled(service, seconds)
                sent = producer.stop()
        table.series = series
        third = max(1, len(series) // 3)
        parts = [series[:third], series[third : 2 * third], series[2 * third :]]
        for index, name in enumerate(table.series_columns[1:], 1):
            table.add(f"{name}, median", *(float(median([row[index] for row in part])) for part in parts))
            table.add(f"{name}, most", *(float(max(row[index] for row in part)) for part in parts))
        service.wait(lambda: service.ask("KafkaLag") == 0, "the lag is 0")
        lost = service.ask("Status")["gap_records"]
        service.stop()
    table.notes.append(
        f"asked for {rate:,.0f} records/s, produced {sent / seconds:,.0f}; lost to the topic's retention: {lost}"
    )
    bench.drop(topic)
    return table


def _sustained(bench, service, topic):
    """Records a second that the service takes while a producer does what it can beside it."""
    with Producer(bench, topic.name) as producer:
        time.sleep(3)
        begun, first = time.monotonic(), service.consumed()
        time.sleep(5 if bench.quick else 15)
        rate = (service.consumed() - first) / (time.monotonic() - begun)
        producer.stop()
    service.wait(lambda: service.ask("KafkaLag") == 0, "the lag is 0")
    return rate


def _sampled(service, seconds):
    series, begun = [], time.monotonic()
    before = (begun, service.consumed(), ticks(service.process.pid))
    while time.monotonic() - begun < seconds:
        time.sleep(1)
        programs.running(service.process, "mtga", service.log)
        now = (time.monotonic(), service.consumed(), ticks(service.process.pid))
        took = now[0] - before[0]
        lag = service.ask("KafkaLag")
        series.append(
            (
                round(now[0] - begun, 1),
                memory(service.process.pid, "VmRSS"),
                lag if lag is not None else -1,
                (now[1] - before[1]) / took,
                (now[2] - before[2]) / took * 100,
            )
        )
        before = now
    return series
