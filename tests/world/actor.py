"""A program that uses a mount as it is told, a JSON line each, and answers what each call gave: a value, or the name of
its errno. A SIGINT during a call ends it with EINTR."""

import errno
import hashlib
import json
import os
import signal
import sys


class Interrupted(Exception):
    pass


def interrupted(*_):
    raise Interrupted()


FLAGS = {name: getattr(os, name) for name in dir(os) if name.startswith("O_")}
handles = {}


def flags_of(text):
    flags = 0
    for name in text.split("|"):
        flags |= FLAGS["O_" + name]
    return flags


def write(order):
    """Writes a range of a local file; `sofar` tells how much was taken when a call fails."""
    at, end = order["offset"], order["offset"] + order["len"]
    with open(order["source"], "rb") as source:
        while at < end:
            source.seek(at)
            piece = source.read(min(order.get("step", 1 << 20), end - at))
            done["bytes"] += os.pwrite(handles[order["as"]], piece, at)
            at += len(piece)
    return at - order["offset"]


def read(order):
    digest, size = hashlib.md5(), 0
    while size < order["len"]:
        piece = os.pread(handles[order["as"]], min(1 << 20, order["len"] - size), order["offset"] + size)
        if not piece:
            break
        digest.update(piece)
        size += len(piece)
    return {"bytes": size, "md5": digest.hexdigest()}


def act(order):
    do, path = order["do"], order.get("path")
    if do == "open":
        handles[order["as"]] = os.open(path, flags_of(order["flags"]), 0o644)
        return None
    if do == "write":
        return write(order)
    if do == "read":
        return read(order)
    if do == "fsync":
        return os.fsync(handles[order["as"]])
    if do == "dup":
        handles[order["as"]] = os.dup(handles[order["of"]])
        return None
    if do == "close":
        return os.close(handles.pop(order["as"]))
    if do == "chmod":
        return os.chmod(path, order["mode"])
    if do == "stat":
        return os.stat(path).st_size
    if do == "list":
        return sorted(os.listdir(path))
    if do == "mkdir":
        return os.mkdir(path)
    if do == "rmdir":
        return os.rmdir(path)
    if do == "unlink":
        return os.unlink(path)
    if do == "rename":
        return os.rename(path, order["to"])
    if do == "statvfs":
        return os.statvfs(path).f_bavail
    raise ValueError(do)


signal.signal(signal.SIGINT, interrupted)
print(json.dumps({"value": os.getpid()}), flush=True)
for line in sys.stdin:
    done = {"bytes": 0}
    try:
        answer = {"value": act(json.loads(line))}
    except Interrupted:
        answer = {"errno": "EINTR"}
    except OSError as error:
        answer = {"errno": errno.errorcode.get(error.errno, str(error.errno))}
    answer["bytes"] = done["bytes"]
    print(json.dumps(answer), flush=True)
