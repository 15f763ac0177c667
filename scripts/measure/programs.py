"""The programs that are measured. Each run ends when what it wrote is on the disk, and that every record is there is checked.

CPU and peak memory are the kernel's figures: getrusage for a program that ends by itself (kcat, floor.c), /proc for one
that goes on waiting for records (mtga, rsyslog), taken when its last record is written. mtga's lag is 0 only when the data
are synced; all others are followed by a sync of their file, which counts as wall time. The questions for the lag, ten a
second, cost mtga CPU and are counted.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections import namedtuple
from pathlib import Path

from .kafka import Failed, ask

TOP = Path(__file__).resolve().parents[2]
PATIENCE = 900  # seconds that a run may take

Cost = namedtuple("Cost", "cpu wall peak")  # seconds, seconds, MiB
Topic = namedtuple("Topic", "name partitions records bytes")


def _sync(path):
    with open(path, "rb") as file:
        os.fdatasync(file.fileno())


def _to_end(bench, command, out):
    """A program that ends by itself, with its standard output in `out`. time(1) stands between, since a process begins
    with the peak memory of the one that forked it: ours would count."""
    said = bench.work / "time"
    begun = time.monotonic()
    with open(out, "wb") as file:
        status = subprocess.call(["/usr/bin/time", "-f", "%U %S %M", "-o", said, *command], stdout=file)
    if status != 0:
        raise Failed(f"{command[0]} ended with {status}")
    _sync(out)
    wall = time.monotonic() - begun
    user, system, peak = map(float, said.read_text().split())
    return Cost(user + system, wall, peak / 1024)


def _checked(name, cost, out, topic):
    size, wanted = out.stat().st_size, topic.bytes + topic.records
    out.unlink()
    if size != wanted:
        raise Failed(f"{name} wrote {size} bytes of {wanted}")
    return cost


def kcat(bench, topic):
    out = bench.work / "kcat.out"
    command = ["kcat", "-C", "-e", "-q", "-b", bench.brokers, "-t", topic.name, "-o", "beginning"]
    return _checked("kcat", _to_end(bench, command, out), out, topic)


def floor(bench, topic):
    program, out = bench.work / "floor-program", bench.work / "floor.out"
    if not program.exists():
        source = TOP / "benches/floor.c"
        subprocess.run(["cc", "-O3", "-Wall", "-Wextra", "-o", program, source, "-lrdkafka"], check=True)
    begun = time.monotonic()
    command = [program, bench.brokers, topic.name, str(topic.partitions), out]
    cost = _to_end(bench, command, bench.work / "floor.said")
    _sync(out)
    return _checked("floor", cost._replace(wall=time.monotonic() - begun), out, topic)


def ticks(pid):
    """CPU seconds that a process has used, all threads it ever had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid, field="VmHWM"):
    """MiB; VmHWM is the most there ever was, VmRSS what is there now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise Failed(f"process {pid} is gone")


def running(process, what, log):
    if process.poll() is not None:
        tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
        raise Failed(f"{what} ended by itself\n{tail}")


def end(process):
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def rsyslog_is_there():
    """Installed when it is missing and may be."""
    return subprocess.call([TOP / "scripts/install", "peers"]) == 0


def rsyslog(bench, topic):
    """imkafka to omfile, the message as it is; a group of its own each time."""
    home = bench.work / "rsyslog"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    out, conf, log = home / "out", home / "conf", home / "said"
    conf.write_text(
        f'global(workDirectory="{home}" maxMessageSize="2m")\n'
        'module(load="imkafka")\n'
        'template(name="raw" type="string" string="%msg%\\n")\n'
        f'ruleset(name="all") {{ action(type="omfile" file="{out}" template="raw" ioBufferSize="1m" asyncWriting="off") }}\n'
        f'input(type="imkafka" topic="{topic.name}" broker="{bench.brokers}" consumergroup="bench-{time.time_ns()}"\n'
        '  confParam=["auto.offset.reset=earliest"] ruleset="all")\n'
    )
    begun = time.monotonic()
    with open(log, "wb") as said:
        process = subprocess.Popen(
            ["/usr/sbin/rsyslogd", "-n", "-f", conf, "-i", home / "pid"], stdout=said, stderr=subprocess.STDOUT
        )
    try:
        wanted = topic.bytes + topic.records
        while not out.exists() or out.stat().st_size < wanted:
            running(process, "rsyslogd", log)
            if time.monotonic() - begun > PATIENCE:
                raise Failed(f"rsyslogd has not written everything after {PATIENCE} s")
            time.sleep(0.05)
        cpu, peak = ticks(process.pid), memory(process.pid)
        _sync(out)
        cost = Cost(cpu, time.monotonic() - begun, peak)
    finally:
        end(process)
    return _checked("rsyslogd", cost, out, topic)


def line_count(path):
    count = 0
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            count += part.count(b"\n")
    return count


def merged(base, over):
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merged(base[key], value)
        else:
            base[key] = value
    return base


class Mtga:
    """A home and the service on it. `config` is merged over the defaults: every part that makes delivery sure stays on."""

    def __init__(self, bench, topic, config=None, name="home"):
        self.home = bench.work / name
        self.binary = self.home / "bin/mtga"
        self.log = bench.work / f"{name}.said"
        self.process = None
        shutil.rmtree(self.home, ignore_errors=True)
        build = [TOP / "scripts/build", "--binary", bench.binary, "--to", self.home]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        for file in ("filter", "metadata"):
            (self.home / f"settings/mthinkingdata:{file}.24.json").write_text("[]\n")
        kafka = {"brokers": bench.brokers, "topics": [topic], "group_id": "bench", "assignment": "all"}
        settings = merged({"kafka": kafka}, config or {})
        # JSON is YAML.
        (self.home / "config/mtga.local.yml").write_text(json.dumps(settings) + "\n")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process is not None:
            end(self.process)
        shutil.rmtree(self.home, ignore_errors=True)

    def start(self, under=()):
        """`under` is the command of a program that runs it; what is measured of the process is then that program's."""
        self.begun = time.monotonic()
        with open(self.log, "ab") as said:
            command = [*under, self.binary, "--home", self.home, "start_not_daemon"]
            self.process = subprocess.Popen(command, stdout=said, stderr=said)
        return self

    def command(self, *words):
        """A command of the client, as an operator gives it; what it prints."""
        run = [self.binary, "--home", self.home, *words]
        return subprocess.run(run, check=True, capture_output=True, text=True).stdout

    def ask(self, method):
        """The answer, or None while the service is not ready to answer."""
        try:
            return ask(self.home / "tmp/mtga.sock", method)
        except (OSError, KeyError, TypeError):
            return None

    def wait(self, condition, what, step=0.1):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            running(self.process, "mtga", self.log)
            if time.monotonic() > deadline:
                raise Failed(f"mtga: {what}: not after {PATIENCE} s: {self.ask('Status')}")
            time.sleep(step)

    def consumed(self):
        return ((self.ask("Status") or {}).get("counts") or {}).get("consumed", 0)

    def drain(self, records):
        """Waits until everything is durable; what it took since the start."""
        self.wait(lambda: self.ask("KafkaLag") == 0 and self.consumed() >= records, "the lag is 0")
        wall = time.monotonic() - self.begun
        return Cost(ticks(self.process.pid), wall, memory(self.process.pid))

    def files(self):
        """Every event file, hidden ones too, with its length."""
        found = {}
        data = self.home / "data"
        for path in data.rglob("*"):
            is_own = path.name.endswith(".manifest.json") or ".mtga" in path.relative_to(data).parts
            try:
                if path.is_file() and not is_own:
                    found[path] = path.stat().st_size
            except FileNotFoundError:
                pass
        return found

    def size(self):
        return sum(self.files().values())

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        end(self.process)
        if self.process.returncode != 0:
            raise Failed(f"mtga did not stop in good order: {self.process.returncode}\n{self.log.read_text()[-2000:]}")


def mtga(bench, topic, config=None, lines=None):
    """One run over the whole topic. `lines`: how many there must be at the end, all records unless told otherwise."""
    with Mtga(bench, topic.name, config) as service:
        cost = service.start().drain(topic.records)
        service.stop()
        if not (config or {}).get("sink", {}).get("compression"):
            counted = sum(map(line_count, service.files()))
            wanted = topic.records if lines is None else lines
            if counted != wanted:
                raise Failed(f"mtga wrote {counted} lines of {wanted}")
    return cost
