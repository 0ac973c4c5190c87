//! Mounts of ordinary users, and what other users see of them.

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::support::fault::Rule;
use crate::support::mounted::{bosfs_binary, run, wait_child};
use crate::support::{Action, BUCKET, Call, When, World};
use crate::{WAIT, timed};

/// A user that every Debian has, and that has no rights.
const NOBODY: u32 = 65534;

/// A world that another user can get at, with a program and folders of that user, in a mount namespace of its own where
/// `/dev/fuse` is open to all, as it is on most machines, and `/etc/fuse.conf` says what the test likes.
struct Theirs {
    world: World,
    program: PathBuf,
    dir: PathBuf,
    /// Holds the namespace; ends when its input does.
    holder: Child,
}

impl Theirs {
    fn new(fuse_conf: &str) -> Self {
        let world = World::new();
        std::fs::set_permissions(world.tmp.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = world.path("program");
        std::fs::copy(bosfs_binary(), &program).unwrap();
        let dir = world.path("their-mnt");
        for folder in [&dir, &world.path("home")] {
            std::fs::create_dir(folder).unwrap();
            chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        chown(world.credentials(), Some(NOBODY), Some(NOBODY)).unwrap();
        std::fs::set_permissions(world.credentials(), std::fs::Permissions::from_mode(0o600)).unwrap();
        let (conf, device) = (world.path("fuse.conf"), world.path("fuse"));
        std::fs::write(&conf, fuse_conf).unwrap();
        std::fs::set_permissions(&conf, std::fs::Permissions::from_mode(0o644)).unwrap();
        let prepare = concat!(
            include_str!("../support/alone.sh"),
            "leave_other_mounts \"$(dirname \"$0\")\"; set -e; mknod -m 666 \"$1\" c 10 229; mount --bind \"$1\" /dev/fuse; \
                       touch /etc/fuse.conf; mount --bind \"$0\" /etc/fuse.conf; echo ready; exec cat"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "bash", "-c", prepare]).arg(&conf).arg(&device);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        holder.stdout.as_mut().unwrap().read_exact(&mut ready).expect("a mount namespace");
        assert_eq!(&ready, b"ready\n");
        Self { world, program, dir, holder }
    }

    /// A command in the namespace as this user (`None`: root).
    fn inside(&self, user: Option<u32>, program: &OsStr, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id())).arg("--");
        if let Some(user) = user {
            command.arg("setpriv").args([format!("--reuid={user}"), format!("--regid={user}")]).arg("--clear-groups");
        }
        command.arg(program).args(args).current_dir("/");
        command.env("HOME", self.world.path("home")).env_remove("XDG_STATE_HOME");
        command
    }

    fn mount_command(&self, target: &str, args: &[&str]) -> Command {
        let mut command = self.inside(Some(NOBODY), self.program.as_os_str(), &["mount", target]);
        command.arg(&self.dir).args(["--endpoint", &self.world.proxy.endpoint(), "--credentials"]);
        command.arg(self.world.credentials()).args(args);
        command
    }

    /// A shell line in the namespace.
    fn sh(&self, user: Option<u32>, line: &str) -> Output {
        run(&mut self.inside(user, OsStr::new("bash"), &["-c", line]), WAIT)
    }

    /// `bosfs umount` by the user.
    fn umount(&self) -> Output {
        let dir = self.dir.display().to_string();
        run(&mut self.inside(Some(NOBODY), self.program.as_os_str(), &["umount", &dir]), WAIT)
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        // A mount that a failed test left ends with its process, which goes with its namespace's last mount.
        let _ = self.sh(None, &format!("umount -l {}", self.dir.display()));
        self.holder.stdin = None;
        let _ = wait_child(&mut self.holder, WAIT);
    }
}

/// Waits until something is so; `false`: it never was.
fn comes_true(mut is_so: impl FnMut() -> bool) -> bool {
    let end = std::time::Instant::now() + WAIT;
    while !is_so() {
        if std::time::Instant::now() > end {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    true
}

/// An ordinary user's `--write-back` mount with a closed file that BOS is too busy to take, until the rule is turned off.
fn with_a_pending_file() -> (Theirs, Rule) {
    let theirs = Theirs::new("");
    let output = run(&mut theirs.mount_command(BUCKET, &["--write-back"]), WAIT);
    assert!(output.status.success(), "{output:?}");
    let busy = theirs.world.proxy.fault(When::call(Call::PutObject), Action::error(503, "ServiceUnavailable"));
    let line = format!("head -c 100000 /dev/zero > {}/f", theirs.dir.display());
    let output = theirs.sh(Some(NOBODY), &line);
    assert!(output.status.success(), "{output:?}");
    (theirs, busy)
}

impl Theirs {
    fn umount_as(&self, user: Option<u32>, args: &[&str]) -> Output {
        let dir = self.dir.display().to_string();
        let args = [&["umount"], args, &[dir.as_str()]].concat();
        run(&mut self.inside(user, self.program.as_os_str(), &args), WAIT)
    }

    fn is_mounted(&self) -> bool {
        let line = format!("grep -q ' {} ' /proc/self/mountinfo", self.dir.display());
        self.sh(None, &line).status.success()
    }
}

/// `bosfs umount` by root of another user's mount waits for what that still has to send, and exits 0 only when all is in BOS.
#[test]
fn umount_by_root_waits_for_the_files_of_another_users_mount() {
    crate::need_root();
    let (theirs, busy) = with_a_pending_file();
    let output = theirs.umount_as(None, &["--timeout", "2s"]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    assert!(theirs.is_mounted(), "taken away with a file pending: {output:?}");
    let umount = std::thread::scope(|scope| {
        let umount = scope.spawn(|| theirs.umount_as(None, &[]));
        std::thread::sleep(std::time::Duration::from_secs(1));
        busy.turn_off();
        umount.join().unwrap()
    });
    assert!(umount.status.success(), "{umount:?}");
    assert_eq!(theirs.world.bucket.head("f").unwrap().expect("sent").size, 100_000);
    assert!(!theirs.is_mounted());
}

/// `bosfs umount` of a mount of somebody else, by a user who is not root, exits 1, says that it cannot tell whether everything
/// is in BOS, and leaves the mount.
#[test]
fn umount_by_a_stranger_leaves_the_mount() {
    crate::need_root();
    let (theirs, busy) = with_a_pending_file();
    let output = theirs.umount_as(Some(65533), &[]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text.contains("cannot tell") && !text.contains("had no process"), "{text}");
    assert!(theirs.is_mounted());
    busy.turn_off();
    assert!(theirs.umount().status.success());
}

/// `bosfs umount` by root of another user's mount whose process was killed detaches it and exits 3: its journal, which may
/// be anywhere, cannot be asked whether everything is in BOS.
#[test]
fn umount_by_root_of_another_users_dead_mount_does_not_say_that_all_is_well() {
    crate::need_root();
    let (theirs, busy) = with_a_pending_file();
    assert!(busy.wait_hit(WAIT));
    let status = theirs.sh(Some(NOBODY), &format!("cat {}/.bosfs/status.json", theirs.dir.display())).stdout;
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    assert!(theirs.sh(None, &format!("kill -9 {}", status["pid"])).status.success(), "{status}");
    assert!(comes_true(|| {
        let output = theirs.sh(Some(NOBODY), &format!("stat {}", theirs.dir.display()));
        String::from_utf8_lossy(&output.stderr).contains("not connected")
    }));
    let output = theirs.umount_as(None, &[]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(text.contains("had no process any more") && text.contains("cannot be told"), "{text}");
    assert!(!theirs.is_mounted());
}

/// As the other user: a shell line.
fn as_nobody(line: &str) -> Output {
    run(Command::new("bash").args(["-c", line]).uid(NOBODY).gid(NOBODY).current_dir("/"), WAIT)
}

fn allowed(line: &str) -> String {
    let output = as_nobody(line);
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A line that must be refused with "Permission denied" (or "Operation not permitted").
fn refused(line: &str) {
    let output = as_nobody(line);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{line} is allowed: {output:?}");
    assert!(text.contains("denied") || text.contains("not permitted"), "{line}: {text}");
}

/// An ordinary user mounts for himself alone: even root gets EACCES.
#[test]
fn an_ordinary_user_mounts_for_himself_alone() {
    crate::need_root();
    let theirs = Theirs::new("");
    // Also a prefix that would be two options of fusermount3.
    for target in [BUCKET.to_owned(), format!("{BUCKET}/a,allow_other")] {
        let output = run(&mut theirs.mount_command(&target, &[]), WAIT);
        assert!(output.status.success(), "{target}: {output:?}");
        let dir = theirs.dir.display().to_string();
        let output = theirs.sh(Some(NOBODY), &format!("echo theirs > {dir}/f && cat {dir}/f && chmod 600 {dir}/f"));
        assert!(output.status.success() && output.stdout == b"theirs\n", "{target}: {output:?}");
        // Nobody else, not even root, whatever the modes say.
        theirs.sh(Some(NOBODY), &format!("chmod 777 {dir} {dir}/f"));
        for line in ["ls", "stat", "cat", "touch"] {
            let output = theirs.sh(None, &format!("{line} {dir}/f"));
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && text.contains("Permission denied"), "{target}: {line}: {output:?}");
        }
        let output = theirs.umount();
        assert!(output.status.success(), "{target}: {output:?}");
    }
    assert_eq!(theirs.world.bucket.get("f").unwrap(), b"theirs\n");
    assert_eq!(theirs.world.bucket.get("a,allow_other/f").unwrap(), b"theirs\n");
}

/// `--allow-other` by an ordinary user whom `/etc/fuse.conf` does not allow it exits 5.
#[test]
fn allow_other_is_refused_to_an_ordinary_user_whom_the_administrator_did_not_allow_it() {
    crate::need_root();
    let theirs = Theirs::new("#user_allow_other\n");
    let output = run(&mut theirs.mount_command(BUCKET, &["--allow-other"]), WAIT);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let words = "option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf";
    assert!(text.contains(words) && text.contains("bosfs:"), "no clear message: {text}");
    let dir = theirs.dir.display().to_string();
    assert!(!theirs.sh(None, &format!("mountpoint {dir}")).status.success(), "left mounted");
}

#[test]
fn allow_other_works_for_an_ordinary_user_whom_the_administrator_allowed_it() {
    crate::need_root();
    let theirs = Theirs::new("user_allow_other\n");
    let output = run(&mut theirs.mount_command(BUCKET, &["--allow-other"]), WAIT);
    assert!(output.status.success(), "{output:?}");
    let dir = theirs.dir.display().to_string();
    let line =
        format!("echo theirs > {dir}/open && chmod 644 {dir}/open && echo x > {dir}/closed && chmod 600 {dir}/closed");
    assert!(theirs.sh(Some(NOBODY), &line).status.success());
    const OTHER: u32 = 65533;
    assert_eq!(theirs.sh(Some(OTHER), &format!("cat {dir}/open")).stdout, b"theirs\n");
    for line in ["cat DIR/closed", "echo x >> DIR/open", "rm -f DIR/closed", "chmod 777 DIR/open"] {
        let output = theirs.sh(Some(OTHER), &line.replace("DIR", &dir));
        assert!(!output.status.success(), "{line}: {output:?}");
    }
    let output = theirs.umount();
    assert!(output.status.success(), "{output:?}");
}

/// Files of root with all kinds of modes in a mount of root.
fn prepared(dir: &Path) {
    let dir = dir.to_owned();
    let made = timed(move || {
        for (name, mode) in [("private", 0o600), ("readable", 0o644), ("writable", 0o666)] {
            std::fs::write(dir.join(name), b"bytes\n")?;
            std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(mode))?;
        }
        for (name, mode) in [("closed", 0o700), ("open", 0o755), ("shared", 0o1777)] {
            std::fs::create_dir(dir.join(name))?;
            std::fs::write(dir.join(name).join("inside"), b"bytes\n")?;
            std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(mode))?;
        }
        std::io::Result::Ok(())
    });
    made.unwrap();
}

/// Without `--allow-other` nobody else gets into the mount.
#[test]
fn without_allow_other_nobody_else_gets_in() {
    crate::need_root();
    let world = World::new();
    std::fs::set_permissions(world.tmp.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mount = world.mount(&[]);
    prepared(mount.dir());
    for name in ["", "readable", "open/inside", ".bosfs/status.json"] {
        refused(&format!("stat {}/{name}", mount.dir().display()));
        refused(&format!("cat {}/{name}", mount.dir().display()));
    }
}

/// With `--allow-other` modes and owners hold for other users as on a local disk.
#[test]
fn with_allow_other_modes_hold_for_other_users() {
    crate::need_root();
    let world = World::new();
    std::fs::set_permissions(world.tmp.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mount = world.mount(&["--allow-other"]);
    prepared(mount.dir());
    let dir = mount.dir().display().to_string();
    assert_eq!(allowed(&format!("cat {dir}/readable")), "bytes\n");
    assert_eq!(allowed(&format!("cat {dir}/open/inside")), "bytes\n");
    refused(&format!("cat {dir}/private"));
    refused(&format!("cat {dir}/closed/inside"));
    refused(&format!("ls {dir}/closed"));
    refused(&format!("echo x >> {dir}/readable"));
    refused(&format!("chmod 777 {dir}/readable"));
    refused(&format!("chown 65534 {dir}/readable"));
    refused(&format!("mv {dir}/readable {dir}/stolen"));
    refused(&format!("rm -f {dir}/private"));
    refused(&format!("touch {dir}/new"));
    refused(&format!("mkdir {dir}/open/new"));
    refused(&format!("ln -s target {dir}/open/link"));
    // Sticky: what is in it belongs to who made it.
    refused(&format!("rm -f {dir}/shared/inside"));
    allowed(&format!("echo more >> {dir}/writable"));
    allowed(&format!("echo own > {dir}/shared/own && chmod 600 {dir}/shared/own && cat {dir}/shared/own"));
    let owner = allowed(&format!("stat -c %u:%a {dir}/shared/own"));
    assert_eq!(owner, "65534:600\n");
    assert_eq!(world.bucket.get("writable").unwrap(), b"bytes\nmore\n");
    assert_eq!(world.bucket.get("private").unwrap(), b"bytes\n");
}
