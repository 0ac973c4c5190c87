//! A program that writes through a mapping while a publication does not get through.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use crate::scene::{KEY, Mode, Scene, Stuck, Then};
use crate::support::mounted::wait_child;
use crate::{LOCAL, MIB, WAIT};

/// Maps the file, and for each line of its input writes `line` at that offset and syncs the mapping.
const PROGRAM: &str = r#"
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
view = mmap.mmap(fd, 0)
print("mapped", flush=True)
for line in sys.stdin:
    at, text = line.split()
    view[int(at):int(at) + len(text)] = text.encode()
    view.flush()
    print("written", flush=True)
view.close()
os.close(fd)
"#;

struct Mapping {
    program: Child,
    orders: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Mapping {
    fn start(path: &Path) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", PROGRAM]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = command.spawn().expect("python3 starts");
        let (orders, lines) = (program.stdin.take(), BufReader::new(program.stdout.take().expect("piped")).lines());
        let (tell, answers) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let mapping = Self { program, orders, answers };
        assert_eq!(mapping.answers.recv_timeout(WAIT).as_deref(), Ok("mapped"));
        mapping
    }

    /// Writes through the mapping; once this returns, the kernel has handed it over.
    fn write(&mut self, at: u64, text: &str, model: &mut [u8]) {
        writeln!(self.orders.as_mut().expect("it takes orders"), "{at} {text}").expect("it lives");
        assert_eq!(self.answers.recv_timeout(LOCAL).as_deref(), Ok("written"), "msync waits");
        model[at as usize..][..text.len()].copy_from_slice(text.as_bytes());
    }

    fn end(mut self) {
        drop(self.orders.take());
        assert!(wait_child(&mut self.program, WAIT).is_some_and(|status| status.success()), "it does not end");
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = wait_child(&mut self.program, WAIT);
    }
}

fn b_writes_through_a_mapping(mode: Mode, then: Then) {
    let mut scene = Scene::of_parts(mode, Stuck::Complete);
    let mut both = scene.closed.clone();
    let mut b = Mapping::start(&scene.mount.path(KEY));
    b.write(MIB, "through-a-mapping", &mut both);
    b.write(17 * MIB + 4090, "over-the-end-of-a-page", &mut both);
    scene.assert_shown(&both);
    scene.go_on(then);
    scene.a_is_published();
    let (base, closed) = (scene.base.clone(), scene.closed.clone());
    let last = match then {
        Then::Recovers => {
            b.end();
            scene.wait_object(&both, "what B closed");
            &both
        }
        Then::KilledAndMounted => {
            scene.assert_interrupted(&both);
            &closed
        }
    };
    scene.unmount(last);
    scene.states.assert_in_order(&[("the base", &base), ("A's", &closed), ("B's", &both)]);
}

#[test]
fn b_writes_through_a_mapping_and_the_line_recovers() {
    b_writes_through_a_mapping(Mode::Default, Then::Recovers);
}

#[test]
fn b_writes_through_a_mapping_and_bosfs_is_killed() {
    b_writes_through_a_mapping(Mode::WriteBack, Then::KilledAndMounted);
}
