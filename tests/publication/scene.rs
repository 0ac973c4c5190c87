//! A file that was closed and cannot be published yet.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::time::Instant;

use crate::hand::{Hand, Pending};
use crate::states::States;
use crate::support::fault::Rule;
use crate::support::files::random_bytes;
use crate::support::mounted::within;
use crate::support::{Action, Call, Mounted, When, World};
use crate::{KIB, LOCAL, MIB, WAIT};

pub const KEY: &str = "f";
/// Five parts of 8 MiB: A changes the last one, BOS copies the others.
pub const PARTS_BYTES: usize = 40 << 20;
/// Where A writes in an object of [`PARTS_BYTES`].
pub const A_AT: u64 = 36 * MIB;
/// Bytes that A writes.
const A_BYTES: usize = 4 << 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    Default,
    WriteBack,
}

/// What of A's publication does not get through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stuck {
    /// The part that A changed: 503.
    Part,
    /// The parts that are copied from the base: 503.
    Copy,
    /// Complete: 503.
    Complete,
    /// The line breaks in Complete.
    CompleteBreaks,
    /// PutObject of a file of one part: 503.
    Put,
}

impl Stuck {
    fn begin(self, world: &World) -> Rule {
        let refused = || Action::error(503, "ServiceUnavailable");
        match self {
            Stuck::Part => world.proxy.fault(When::call(Call::UploadPart).key(KEY), refused()),
            Stuck::Copy => world.proxy.fault(When::call(Call::UploadPartCopy).key(KEY), refused()),
            Stuck::Complete => world.proxy.fault(When::call(Call::Complete).key(KEY), refused()),
            Stuck::CompleteBreaks => world.proxy.fault(When::call(Call::Complete).key(KEY), Action::CutAfterBody),
            Stuck::Put => world.proxy.fault(When::call(Call::PutObject).key(KEY), refused()),
        }
    }
}

/// How BOS comes to take the publication in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Then {
    /// It answers well again.
    Recovers,
    /// bosfs is killed by SIGKILL, BOS answers well again, and bosfs is mounted again.
    KilledAndMounted,
}

pub struct Scene {
    // The mount goes before the world, and A's thread ends with it.
    pub mount: Mounted,
    pub states: States,
    pub world: World,
    pub mode: Mode,
    /// The object before.
    pub base: Vec<u8>,
    /// The file as A closed it.
    pub closed: Vec<u8>,
    /// A's close; `None`: it has returned.
    closing: Option<Pending<io::Result<()>>>,
    fault: Rule,
}

impl Scene {
    /// A has changed 4 KiB of an object of five parts and closes it.
    pub fn of_parts(mode: Mode, stuck: Stuck) -> Self {
        Self::new(mode, stuck, PARTS_BYTES, A_AT)
    }

    /// A has changed 4 KiB of an object of one part and closes it.
    pub fn of_one_part(mode: Mode) -> Self {
        Self::new(mode, Stuck::Put, MIB as usize, 100 * KIB + 100)
    }

    fn new(mode: Mode, stuck: Stuck, bytes: usize, a_at: u64) -> Self {
        let world = World::new();
        let base = random_bytes(1, bytes);
        world.bucket.put(KEY, &base).unwrap();
        let args: &[&str] = match mode {
            Mode::Default => &["--part-size", "8MiB"],
            Mode::WriteBack => &["--part-size", "8MiB", "--write-back"],
        };
        let mount = world.mount(args);
        let states = States::watch(&world.bucket, KEY);
        let fault = stuck.begin(&world);
        let mut closed = base.clone();
        let mut scene = Self { mount, states, world, mode, base, closed: Vec::new(), closing: None, fault };
        let a = scene.open();
        scene.put(&a, &mut closed, a_at, 2, A_BYTES);
        scene.closed = closed;
        let closing = a.begin_close();
        match mode {
            Mode::Default => scene.closing = Some(closing),
            Mode::WriteBack => closing.within(WAIT, "A's close with --write-back").unwrap(),
        }
        assert!(scene.fault.wait_hit(WAIT), "the publication does not come to {stuck:?}\n{}", scene.told());
        scene
    }

    /// The file, opened for reading and writing.
    #[track_caller]
    pub fn open(&self) -> Hand {
        Hand::open(&self.mount.path(KEY))
    }

    /// Writes `len` random bytes at `at`, also into `model`.
    #[track_caller]
    pub fn put(&self, hand: &Hand, model: &mut Vec<u8>, at: u64, seed: u64, len: usize) {
        let bytes = random_bytes(seed, len);
        hand.write(at, &bytes);
        let end = at as usize + len;
        model.resize(model.len().max(end), 0);
        model[at as usize..end].copy_from_slice(&bytes);
    }

    /// BOS takes everything again, in one of the two ways. A kill also ends all handles.
    #[track_caller]
    pub fn go_on(&mut self, then: Then) {
        match then {
            Then::Recovers => self.fault.turn_off(),
            Then::KilledAndMounted => {
                self.mount.kill();
                self.closing = None;
                self.world.proxy.clear_rules();
                self.world.wait_quiet();
                self.mount.remount().unwrap_or_else(|e| panic!("{e}"));
            }
        }
    }

    /// Waits for A's close, if it lasts. Whether it did.
    #[track_caller]
    pub fn a_returns(&mut self) -> bool {
        let Some(closing) = self.closing.take() else { return false };
        let closed = closing.within(WAIT, "A's close");
        assert!(closed.is_ok(), "A's close: {closed:?}\n{}", self.told());
        true
    }

    /// The object is what A closed, from the return of its close on.
    #[track_caller]
    pub fn a_is_published(&mut self) {
        match self.a_returns() {
            true => self.assert_object(&self.closed, "when A's close has returned"),
            false => self.wait_object(&self.closed, "what A closed"),
        }
    }

    /// Waits until the header `name` of the object is `expected`.
    #[track_caller]
    pub fn wait_header(&self, name: &str, expected: &str) {
        let end = Instant::now() + WAIT;
        loop {
            let head = self.world.bucket.head_reply(KEY).unwrap_or(None);
            let found = head.as_ref().and_then(|head| head.header(name));
            if found.is_some_and(|found| found.contains(expected)) {
                return;
            }
            assert!(Instant::now() < end, "{name} stays {found:?}, not {expected:?}\n{}", self.told());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// The object has exactly these bytes now.
    #[track_caller]
    pub fn assert_object(&self, expected: &[u8], when: &str) {
        assert_bytes(&self.world.bucket.get(KEY).unwrap(), expected, &format!("the object {when}"), || self.told());
    }

    /// Waits until the object has exactly these bytes.
    #[track_caller]
    pub fn wait_object(&self, expected: &[u8], what: &str) {
        let end = Instant::now() + WAIT;
        loop {
            let found = self.world.bucket.get(KEY).unwrap_or_default();
            if found == expected {
                return;
            }
            if Instant::now() > end {
                assert_bytes(&found, expected, &format!("the object does not become {what}: it"), || self.told());
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// What the mount shows has exactly these bytes.
    #[track_caller]
    pub fn assert_shown(&self, expected: &[u8]) {
        let path = self.mount.path(KEY);
        let shown = within(WAIT, "reading the file", move || std::fs::read(path));
        let shown = shown.unwrap_or_else(|e| panic!("reading the file: {e}\n{}", self.told()));
        assert_bytes(&shown, expected, "the file in the mount", || self.told());
    }

    /// The file is kept as that of a writer that was cut off, with these bytes.
    #[track_caller]
    pub fn assert_interrupted(&self, expected: &[u8]) {
        self.mount.wait_state(KEY, WAIT, |entry| entry.is_some_and(|e| e["state"] == "interrupted"));
        self.assert_shown(expected);
    }

    /// `bosfs umount` succeeds, and the object is this then.
    #[track_caller]
    pub fn unmount(&mut self, expected: &[u8]) {
        let output = self.mount.umount(WAIT);
        assert!(output.status.success(), "{output:?}\n{}", self.told());
        self.assert_object(expected, "after umount");
    }

    /// Requests and log, for a failure.
    pub fn told(&self) -> String {
        let tail = |text: String| {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(25)..].join("\n")
        };
        format!("{}\n{}", tail(self.world.proxy.counts().log_text()), tail(self.world.log_text()))
    }
}

/// Truncates while it opens, as `cp` and shells do.
pub fn truncating() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).truncate(true);
    options
}

/// Opens and truncates: needs no network.
#[track_caller]
pub fn open_truncating(path: &Path) -> Hand {
    let (hand, opened) = Hand::begin_open(path, &truncating());
    opened.within(LOCAL, "an open that truncates").expect("an open that truncates");
    hand
}

/// As `assert_eq`, with the place instead of the bytes.
#[track_caller]
pub fn assert_bytes(found: &[u8], expected: &[u8], what: &str, told: impl Fn() -> String) {
    if found == expected {
        return;
    }
    let differs = |at: &usize| found[*at] != expected[*at];
    let common = found.len().min(expected.len());
    let first = (0..common).find(differs);
    let last = (0..common).rev().find(differs);
    panic!(
        "{what} has {} bytes, expected {}; they differ from {first:?} to {last:?}\n{}",
        found.len(),
        expected.len(),
        told()
    );
}
