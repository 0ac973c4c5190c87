"""Writes to one file and says on standard output what each call returned.

write_file.py TARGET SOURCE new|update ACT...

An ACT is `OFFSET:LENGTH` (these bytes of SOURCE, to the same offset less the third field, if given: `OFFSET:LENGTH:SHIFT`),
`fsync`, or `hold` (waits until standard input ends). The file is closed at the end in any case. Answers, one line each:
`written BYTES` for every write that returned, `synced`, `held`, `closed`, or `failed WHAT ERRNO`, after which only the close
follows.
"""

import os
import sys

PIECE = 1 << 20


def say(line):
    print(line, flush=True)


def main():
    target, source, mode, *acts = sys.argv[1:]
    flags = os.O_WRONLY | (os.O_CREAT | os.O_TRUNC if mode == "new" else 0)
    try:
        fd = os.open(target, flags, 0o644)
    except OSError as error:
        say(f"failed open {error.errno}")
        return
    read = os.open(source, os.O_RDONLY)
    what = ""
    try:
        for act in acts:
            if act == "hold":
                what = act
                say("held")
                sys.stdin.read()
            elif act == "fsync":
                what = act
                os.fsync(fd)
                say("synced")
            else:
                what = "write"
                offset, length, shift = ([int(field) for field in act.split(":")] + [0])[:3]
                end = offset + length
                while offset < end:
                    piece = os.pread(read, min(PIECE, end - offset), offset)
                    taken = os.pwrite(fd, piece, offset - shift)
                    say(f"written {taken}")
                    offset += taken
    except OSError as error:
        say(f"failed {what} {error.errno}")
    try:
        os.close(fd)
        say("closed")
    except OSError as error:
        say(f"failed close {error.errno}")


main()
