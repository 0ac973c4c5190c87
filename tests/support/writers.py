"""A program that changes files at random and notes each call before and after it; and the model that says what must hold.

    writers.py run DIR LOG SEED         changes files in DIR until a call fails (exit code 3) or until it is killed
    writers.py shown DIR LOG            what a mount shows after a crash: every call that returned, the last one perhaps
    writers.py published DIR LOG        what is published: the last closed state of each file, nothing of an open one
    writers.py whole LOG                the SHA-256 of every state that a file was ever closed in, a line each

LOG has a line of JSON for each call: {"b": [call, ...]} before it, {"d": 1} after it.
"""
import hashlib, json, os, random, sys

NAMES = ['f%d' % i for i in range(6)] + ['中文 %+', 'sub/g']
PIECE = 60000


def piece(seed, length):
    return random.Random(seed).randbytes(length)


class Writer:
    def __init__(self, directory, log, seed):
        self.dir, self.random = directory, random.Random(seed)
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.sizes = {}

    def call(self, name, *args):
        os.write(self.log, (json.dumps({'b': [name, *args]}) + '\n').encode())
        try:
            result = getattr(self, 'do_' + name)(*args)
        except OSError as e:
            os.write(self.log, (json.dumps({'e': e.errno, 'text': str(e)}) + '\n').encode())
            os._exit(3)
        os.write(self.log, b'{"d": 1}\n')
        return result

    def path(self, name):
        return os.path.join(self.dir, name)

    def do_create(self, name):
        self.fd = os.open(self.path(name), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)

    def do_open(self, name):
        self.fd = os.open(self.path(name), os.O_RDWR)

    def do_pwrite(self, name, offset, seed, length):
        data, done = piece(seed, length), 0
        while done < length:
            done += os.pwrite(self.fd, data[done:], offset + done)
            # A short write is what a dying mount has taken of one call; the rest of the call says how it died.
            if done < length:
                os.write(self.log, (json.dumps({'n': done}) + '\n').encode())

    def do_ftruncate(self, name, length):
        os.ftruncate(self.fd, length)

    def do_fsync(self, name):
        os.fsync(self.fd)

    def do_close(self, name):
        os.close(self.fd)

    def do_truncate(self, name, length):
        os.truncate(self.path(name), length)

    def do_rename(self, name, to):
        os.rename(self.path(name), self.path(to))

    def do_unlink(self, name):
        os.unlink(self.path(name))

    def write(self, name, offset, length):
        while length > 0:
            n = min(PIECE, length)
            self.call('pwrite', name, offset, self.random.getrandbits(32), n)
            self.sizes[name] = max(self.sizes[name], offset + n)
            offset, length = offset + n, length - n

    def step(self):
        r, names = self.random, list(self.sizes)
        what = r.choice(['create', 'create', 'modify', 'modify', 'modify', 'append', 'truncate', 'rename', 'unlink'])
        if what == 'create' or not names:
            name = r.choice(NAMES)
            self.call('create', name)
            self.sizes[name] = 0
            self.write(name, 0, r.choice([0, 1, 4096, 100000, 6 << 20 if r.random() < 0.3 else 20000]))
            if r.random() < 0.3:
                self.call('fsync', name)
                self.write(name, r.randrange(self.sizes[name] + 1), 5000)
            self.call('close', name)
            return
        name = r.choice(names)
        if what in ('modify', 'append'):
            self.call('open', name)
            for _ in range(r.randrange(1, 4)):
                size = self.sizes[name]
                if what == 'append':
                    self.write(name, size, r.choice([1, 777, 70000]))
                elif r.random() < 0.25:
                    length = r.randrange(size * 2 + 1)
                    self.call('ftruncate', name, length)
                    self.sizes[name] = length
                else:
                    self.write(name, r.randrange(size + 100000), r.choice([1, 512, 4096, 33333, 120000]))
                if r.random() < 0.2:
                    self.call('fsync', name)
            self.call('close', name)
        elif what == 'truncate':
            length = r.randrange(self.sizes[name] * 2 + 1)
            self.call('truncate', name, length)
            self.sizes[name] = length
        elif what == 'rename':
            to = r.choice([n for n in NAMES if n != name])
            self.call('rename', name, to)
            self.sizes[to] = self.sizes.pop(name)
        else:
            self.call('unlink', name)
            del self.sizes[name]


class Model:
    """Contents by name: as the mount shows them, and as they were last closed."""

    def __init__(self):
        self.shown, self.closed, self.open, self.fresh = {}, {}, None, None
        # The last file that was closed as empty as it was created, and what was closed under its name before: it is
        # published by its release, for which nobody waits.
        self.created, self.unsettled = None, None
        self.whole = {hashlib.sha256(b'').hexdigest()}

    def copy(self):
        other = Model()
        other.shown, other.closed = dict(self.shown), dict(self.closed)
        other.open, other.fresh, other.whole = self.open, self.fresh, self.whole
        other.created, other.unsettled = self.created, self.unsettled
        return other

    def close(self, name):
        self.closed[name] = self.shown[name]
        self.whole.add(hashlib.sha256(self.shown[name]).hexdigest())

    def apply(self, call, name, *args):
        if call == 'create':
            # Until something is written the old content may come back after a crash.
            self.fresh = self.shown.get(name)
            self.shown[name], self.open, self.created = b'', name, name
        elif call == 'open':
            self.open = name
        elif call == 'pwrite':
            offset, seed, length, *taken = args
            data = piece(seed, length)[:taken[0] if taken else length]
            old, self.fresh, self.created = self.shown[name].ljust(offset, b'\0'), None, None
            self.shown[name] = old[:offset] + data + old[offset + len(data):]
        elif call in ('ftruncate', 'truncate'):
            self.shown[name] = self.shown[name][:args[0]].ljust(args[0], b'\0')
            self.created = None
            if call == 'truncate':
                self.close(name)
        elif call == 'fsync' and self.created == name:
            # A created file that is synced is published as it is.
            self.unsettled = (name, self.closed.get(name))
            self.close(name)
        elif call == 'close':
            self.unsettled = (name, self.closed.get(name)) if self.created == name else None
            self.close(name)
            self.open = self.fresh = self.created = None
        elif call == 'rename':
            self.unsettled = None
            self.shown[args[0]] = self.shown.pop(name)
            self.closed[args[0]] = self.closed.pop(name)
        elif call == 'unlink':
            del self.shown[name], self.closed[name]


def replay(log):
    """The model after every call that returned, and after the one that did not."""
    model, pending = Model(), None
    for line in open(log, encoding='utf-8'):
        try:
            entry = json.loads(line)
        except ValueError:
            break  # the program was killed while it noted it
        if 'b' in entry:
            pending = entry['b']
        elif 'n' in entry:
            model.apply(*pending, entry['n'])
        elif 'd' in entry:
            model.apply(*pending)
            pending = None
    after = model.copy()
    if pending is not None:
        after.apply(*pending)
        model.whole |= after.whole
    return model, after, pending


def read_all(directory):
    found = {}
    for at, _, files in os.walk(directory):
        for file in files:
            path = os.path.join(at, file)
            with open(path, 'rb') as f:
                found[os.path.relpath(path, directory)] = f.read()
    return found


def difference(expected, found):
    for name in sorted(set(expected) | set(found)):
        a, b = expected.get(name), found.get(name)
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a or b'', b or b'')) if x != y), None)
            size = lambda x: 'absent' if x is None else '%d bytes' % len(x)
            return '%s is %s, expected %s, first other byte %s' % (name, size(b), size(a), at)


def check(what, directory, log):
    model, after, pending = replay(log)
    found = read_all(directory)
    if what == 'shown':
        allowed = [model.shown, after.shown]
        for state in (model, after):
            if state.fresh is not None:
                allowed.append({**state.shown, state.open: state.fresh})
    else:
        allowed = [model.closed, after.closed]
        # A creation without a later write is whole as it is.
        for state in (model, after):
            if state.open is not None and not state.shown.get(state.open):
                allowed.append({**state.closed, state.open: b''})
        for state in (model, after):
            if state.unsettled is not None:
                name, before = state.unsettled
                for closed in list(allowed):
                    closed = {**closed, name: before}
                    allowed.append({n: c for n, c in closed.items() if c is not None})
    if found in allowed:
        print('ok, last call', pending)
        return 0
    print('%s: %s (last call %s, open: %s)' % (log, ' / '.join(str(difference(a, found)) for a in allowed), pending, model.open))
    return 1


def main():
    what, args = sys.argv[1], sys.argv[2:]
    if what == 'run':
        writer = Writer(args[0], args[1], int(args[2]))
        while True:
            writer.step()
    if what == 'whole':
        print('\n'.join(sorted(replay(args[0])[0].whole)))
        return 0
    return check(what, *args)


sys.exit(main())
