//! Mounts of ordinary users, and what other users see of them.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use crate::support::mounted::{bosfs_binary, detach, is_mounted, run, wait_child};
use crate::support::{BUCKET, World};
use crate::{WAIT, errno, timed};

/// A user that every Debian has, and that has no rights.
const NOBODY: u32 = 65534;

/// A world that another user can get at, with a program and folders of that user.
struct Theirs {
    world: World,
    program: PathBuf,
    dir: PathBuf,
}

impl Theirs {
    fn new() -> Self {
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
        Self { world, program, dir }
    }

    /// A command of bosfs as that user.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).uid(NOBODY).gid(NOBODY).current_dir("/");
        command.env("HOME", self.world.path("home")).env_remove("XDG_STATE_HOME");
        command
    }

    fn mount_command(&self, args: &[&str]) -> Command {
        let mut command = self.command(&["mount", BUCKET]);
        command.arg(&self.dir).args(["--endpoint", &self.world.proxy.endpoint(), "--credentials"]);
        command.arg(self.world.credentials()).args(args);
        command
    }
}

/// A process that ends with this value, and its mount with it.
struct Theirmount(Child, PathBuf);

impl Drop for Theirmount {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        detach(&self.1);
    }
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
    let theirs = Theirs::new();
    let mut command = theirs.mount_command(&["--foreground"]);
    let log = std::fs::File::create(theirs.world.path("bosfs.log")).unwrap();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let mut mount = Theirmount(child, theirs.dir.clone());
    let end = Instant::now() + WAIT;
    while !(is_mounted(&theirs.dir) && as_nobody(&format!("ls {}", theirs.dir.display())).status.success()) {
        assert!(Instant::now() < end && mount.0.try_wait().unwrap().is_none(), "{}", theirs.world.log_text());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    allowed(&format!("echo theirs > {0}/f && cat {0}/f && chmod 600 {0}/f", theirs.dir.display()));
    assert_eq!(theirs.world.bucket.get("f").unwrap(), b"theirs\n");
    // Nobody else, not even root.
    let dir = theirs.dir.clone();
    assert_eq!(errno(timed(move || std::fs::read_dir(dir).map(drop))), libc::EACCES);
    let file = theirs.dir.join("f");
    assert_eq!(errno(timed(move || std::fs::read(file))), libc::EACCES);
    let output = run(theirs.command(&["umount"]).arg(&theirs.dir), WAIT);
    assert!(output.status.success(), "{output:?}\n{}", theirs.world.log_text());
    assert!(!is_mounted(&theirs.dir));
    assert!(wait_child(&mut mount.0, WAIT).is_some_and(|status| status.success()));
}

/// `--allow-other` by an ordinary user whom `/etc/fuse.conf` does not allow it exits 5.
#[test]
fn allow_other_is_refused_to_an_ordinary_user_whom_the_administrator_did_not_allow_it() {
    let theirs = Theirs::new();
    // In a mount namespace of its own, where /etc/fuse.conf allows nothing.
    let conf = theirs.world.path("fuse.conf");
    std::fs::write(&conf, "# user_allow_other\n").unwrap();
    std::fs::set_permissions(&conf, std::fs::Permissions::from_mode(0o644)).unwrap();
    let inner = theirs.mount_command(&["--allow-other"]);
    let mut command = Command::new("unshare");
    let bind = "[ ! -e /etc/fuse.conf ] || mount --bind \"$0\" /etc/fuse.conf; \
                exec setpriv --reuid 65534 --regid 65534 --clear-groups -- \"$@\"";
    command.args(["--mount", "bash", "-c", bind]).arg(&conf).arg(inner.get_program()).args(inner.get_args());
    command.env("HOME", theirs.world.path("home")).env_remove("XDG_STATE_HOME").current_dir("/");
    let output = run(&mut command, WAIT);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "mounted: {output:?}");
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(text.contains("user_allow_other") && text.contains("/etc/fuse.conf"), "no clear message: {text}");
    assert!(!is_mounted(&theirs.dir));
    assert!(theirs.world.proxy.counts().connections > 0, "it was refused for another reason: {text}");
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
    refused(&format!("setfattr -n trusted.x -v 1 {dir}/writable"));
    // Sticky: what is in it belongs to who made it.
    refused(&format!("rm -f {dir}/shared/inside"));
    allowed(&format!("echo more >> {dir}/writable"));
    allowed(&format!("echo own > {dir}/shared/own && chmod 600 {dir}/shared/own && cat {dir}/shared/own"));
    let owner = allowed(&format!("stat -c %u:%a {dir}/shared/own"));
    assert_eq!(owner, "65534:600\n");
    assert_eq!(world.bucket.get("writable").unwrap(), b"bytes\nmore\n");
    assert_eq!(world.bucket.get("private").unwrap(), b"bytes\n");
}
