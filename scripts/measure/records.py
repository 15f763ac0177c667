"""Records as a game server logs them: the members of one size and shape, the values varied; always the same ones."""

import random

NAMES = ("log_item", "log_login", "log_pay", "log_level", "log_mail")
USUAL = 532  # bytes: about what a record has when nobody asks for another size


def usual(rng, index):
    mtime = 1608184243 + index // 50
    return (
        f'{{"headers":{{"app_id":24,"log_name":"{NAMES[index % 5]}"}},'
        f'"logs":{{"account_name":"48660{rng.randrange(10**5):05}","action":{1000 + rng.randrange(9000)},"agent_id":36,'
        f'"amount":{1 + rng.randrange(9)},"bag_amount":0,"bag_type":0,"bind_type":1,"device_id":"","end_time":0,'
        f'"idfa":"","imei":"","is_internal":0,"item_id":311{rng.randrange(10**5):05},'
        f'"mac":"","mtime":{mtime},"pid":16081842440{index % 10**5:05},"platform":3100,"quality":0,"regrow":14,'
        f'"role_id":60013100{rng.randrange(10**5):05},"role_level":{100 + rng.randrange(899)},"server_id":5001,'
        f'"server_version":"","sn":"205914E0{rng.randrange(10**9):010}","star":0,"start_time":{mtime},"upf":3100,'
        f'"via":"36|3100","zero_dateline":1608134400}}}}'
    )


def sized(rng, index, size):
    """A record of exactly this many bytes, 99 at least: the least that is an event, then members of three kinds."""
    name = "log_items" if size == 100 else "log_item"
    head = f'{{"headers":{{"app_id":24,"log_name":"{name}"}},"logs":{{"role_id":60013100{rng.randrange(10**5):05},'
    head += f'"mtime":{1608184243 + index // 50}'
    parts, length, number = [head], len(head) + 2, 0
    while length < size:
        member = (
            f',"name_{number}":"value of {rng.randrange(10**6)}"',
            f',"count_{number}":{rng.randrange(10**9)}',
            f',"text_{number}":"' + "a longer text of some words " * 3 + f'{rng.randrange(10**6)}"',
        )[number % 3]
        if length + len(member) + 14 > size:
            break
        parts.append(member)
        length += len(member)
        number += 1
    if size - length >= 7:
        parts.append(',"_":"' + "x" * (size - length - 7) + '"')
    return "".join(parts) + "}}"


def generate(count, size=USUAL):
    """`count` records as bytes, each of about `size` bytes (exactly, unless it is the usual one)."""
    rng = random.Random(24)
    if size == USUAL:
        return [usual(rng, index).encode() for index in range(count)]
    return [sized(rng, index, size).encode() for index in range(count)]


def rejected(count):
    """Records without an id: every one goes into the failure queue."""
    return [record.replace(b'"role_id"', b'"rolex_id"') for record in generate(count)]


def snappy(data):
    """Raw snappy, as a producer would compress one value: matches of 4 to 64 bytes found by a hash of 4 bytes."""
    out, size = bytearray(), len(data)
    length = size
    while length >= 0x80:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)

    def literal(begin, end):
        while begin < end:
            part = min(end - begin, 256)
            out.extend(((part - 1) << 2,) if part <= 60 else (60 << 2, part - 1))
            out.extend(data[begin : begin + part])
            begin += part

    seen, at, begin = {}, 0, 0
    while at + 4 <= size:
        key = data[at : at + 4]
        before = seen.get(key)
        seen[key] = at
        if before is None or at - before > 0xFFFF:
            at += 1
            continue
        match = 4
        while match < 64 and at + match < size and data[before + match] == data[at + match]:
            match += 1
        literal(begin, at)
        out.append((match - 1) << 2 | 2)
        out.extend((at - before).to_bytes(2, "little"))
        at += match
        begin = at
    literal(begin, size)
    return bytes(out)
