//! A file that was closed and whose release does not come: the kernel sends it when the last mapping is gone, too.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::mounted::wait_child;

/// Maps what it wrote to a new file, closes it, and keeps the mapping until its input ends.
const PROGRAM: &str = r#"
import ctypes, os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
os.write(fd, sys.argv[2].encode())
mmap = ctypes.CDLL(None).mmap
mmap.restype = ctypes.c_void_p
mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
assert mmap(None, 4096, 1, 1, fd, 0) not in (None, 2**64 - 1)
os.close(fd)
print("closed", flush=True)
sys.stdin.read()
"#;

/// See the module.
pub struct MappedFile {
    program: Child,
}

impl MappedFile {
    /// A new file with this content. It is closed when this returns; its release comes after [`MappedFile::release`].
    pub fn closed(path: &Path, content: &str) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", PROGRAM]).arg(path).arg(content).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = command.spawn().expect("python3 starts");
        let mut line = String::new();
        let output = program.stdout.take().expect("a pipe");
        BufReader::new(output).read_line(&mut line).expect("its output");
        assert_eq!(line, "closed\n");
        Self { program }
    }

    /// Ends the program, and with it the mapping.
    pub fn release(mut self, timeout: Duration) {
        drop(self.program.stdin.take());
        let status = wait_child(&mut self.program, timeout).expect("the program ends");
        assert!(status.success(), "{status}");
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}
