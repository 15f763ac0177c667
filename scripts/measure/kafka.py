"""The broker that is measured with: topics made and removed, and filled by kcat."""

import json
import os
import socket
import struct
import subprocess
import time

# A delimiter for values that may have a line's end in them: nothing that is generated contains it.
DELIMITER = "<~mtga-bench~>"


class Failed(Exception):
    """A measurement cannot be made."""


def _string(text):
    data = text.encode()
    return struct.pack(">h", len(data)) + data


def _call(brokers, key, version, body):
    host, port = brokers.split(",")[0].rsplit(":", 1)
    request = struct.pack(">hhi", key, version, 1) + _string("mtga-bench") + body
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        stream = connection.makefile("rb")
        (length,) = struct.unpack(">i", stream.read(4))
        answer = stream.read(length)
    # Behind correlation, throttle time, a count of one and the name stands the error.
    (name,) = struct.unpack_from(">h", answer, 12)
    return struct.unpack_from(">h", answer, 14 + name)[0]


def create(brokers, topic, partitions, **config):
    """A topic; `config` as the broker names it, with `_` for `.`."""
    settings = b"".join(_string(key.replace("_", ".")) + _string(str(value)) for key, value in config.items())
    body = struct.pack(">i", 1) + _string(topic) + struct.pack(">ihi", partitions, 1, 0)
    body += struct.pack(">i", len(config)) + settings + struct.pack(">i?", 30000, False)
    error = _call(brokers, 19, 2, body)
    if error:
        raise Failed(f"cannot create the topic {topic}: Kafka's error {error}")


def delete(brokers, topic):
    error = _call(brokers, 20, 1, struct.pack(">i", 1) + _string(topic) + struct.pack(">i", 30000))
    if error:
        raise Failed(f"cannot delete the topic {topic}: Kafka's error {error}")


def producer(brokers, topic, codec, delimiter="\n", linger_ms=50, batch=10000, spread_ms=1):
    """kcat that produces what it is fed, as one process to write to."""
    settings = {
        "linger.ms": linger_ms,
        "batch.num.messages": batch,
        "queue.buffering.max.messages": 500000,
        "queue.buffering.max.kbytes": 262144,
        "message.max.bytes": 2 << 20,
        # Records without a key: how long one partition takes them all.
        "sticky.partitioning.linger.ms": spread_ms,
    }
    command = ["kcat", "-P", "-q", "-b", brokers, "-t", topic, "-z", codec, "-D", delimiter]
    for key, value in settings.items():
        command += ["-X", f"{key}={value}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def fill(brokers, topic, chunk, count, codec="snappy"):
    """Produces `count` records: the chunk again and again. Returns the bytes of their values."""
    delimiter = "\n" if not any(b"\n" in record for record in chunk) else DELIMITER
    end = delimiter.encode()
    whole = end.join(chunk) + end
    process = producer(brokers, topic, codec, delimiter)
    done = 0
    while done < count:
        part = min(len(chunk), count - done)
        process.stdin.write(whole if part == len(chunk) else end.join(chunk[:part]) + end)
        done += part
    process.stdin.close()
    if process.wait() != 0:
        raise Failed(f"kcat could not produce to {topic}")
    rest = count % len(chunk)
    return (count // len(chunk)) * sum(map(len, chunk)) + sum(map(len, chunk[:rest]))


def pace(stream, lines, per_second, until, step=0.002):
    """Writes lines at a steady rate until `until()` is true; `lines(n)` gives the next n as bytes. Returns how many. What
    could not be written in time is not made up for beyond a second: then the rate was too high."""
    begun = time.monotonic()
    sent = skipped = 0
    while not until():
        due = int((time.monotonic() - begun) * per_second) - sent - skipped
        if due > per_second:
            skipped += due - int(per_second)
            due = int(per_second)
        if due > 0:
            stream.write(lines(due))
            stream.flush()
            sent += due
        time.sleep(step)
    return sent


def ask(path, method, timeout=10):
    """One question to a running mtga over its control socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        connection.connect(os.fspath(path))
        connection.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": {}}).encode() + b"\n")
        for line in connection.makefile():
            answer = json.loads(line)
            if "id" in answer:
                return answer["result"]
    raise OSError("the service closed the connection")
