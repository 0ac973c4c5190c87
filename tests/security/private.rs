//! What bosfs keeps on the disk is for its user alone, whatever the umask, the folder or the moment.

use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::support::mounted::{bosfs_binary, detach, is_mounted, run};
use crate::support::{MountSpec, World};
use crate::{WAIT, timed};

/// A user that every Debian has.
const NOBODY: u32 = 65534;

/// `command` under the umask 000.
fn under_umask_0(command: &Command) -> Command {
    let mut shell = Command::new("bash");
    shell.args(["-c", "umask 000; exec \"$@\"", "bash"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// Everything below a directory, itself included.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_owned()];
    let mut at = 0;
    while at < found.len() {
        if std::fs::symlink_metadata(&found[at]).unwrap().is_dir() {
            found.extend(std::fs::read_dir(&found[at]).unwrap().map(|entry| entry.unwrap().path()));
        }
        at += 1;
    }
    found
}

/// Asserts that nobody else may do anything with what is below `dir`. The names that were looked at.
fn assert_private(dir: &Path) -> Vec<String> {
    let paths = tree(dir);
    for path in &paths {
        let meta = std::fs::symlink_metadata(path).unwrap();
        let wanted = if meta.is_dir() { 0o700 } else { 0o600 };
        assert!(meta.is_dir() || meta.is_file() || meta.file_type().is_socket(), "{} is odd", path.display());
        assert_eq!(meta.mode() & 0o7777, wanted, "{}", path.display());
    }
    paths.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

/// The state directory (0700, its files 0600) and the files of the local store are private under any umask.
#[test]
fn all_files_are_private_under_a_umask_of_0() {
    let world = World::new();
    let (dir, store) = (world.path("mnt"), world.path("store"));
    std::fs::create_dir(&dir).unwrap();
    // Both folders are there before and open to all: the state directory is closed, the store keeps closed files.
    for folder in [&store, &world.state_dir()] {
        std::fs::create_dir(folder).unwrap();
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let mut mount = Command::new(bosfs_binary());
    mount.args(["mount", "bkt"]).arg(&dir).arg(format!("--local={}", store.display()));
    mount.arg("--state-dir").arg(world.state_dir()).args(["--write-back", "--log-level", "trace"]);
    let output = run(&mut under_umask_0(&mount), WAIT);
    assert!(output.status.success(), "{output:?}");
    let path = dir.clone();
    let made = timed(move || {
        std::fs::write(path.join("small"), b"bytes")?;
        std::fs::write(path.join("large"), vec![7; 12 << 20])?;
        std::fs::create_dir(path.join("folder"))?;
        std::fs::set_permissions(path.join("folder"), std::fs::Permissions::from_mode(0o750))?;
        std::fs::rename(path.join("small"), path.join("moved"))?;
        std::fs::read_dir(&path)?.try_for_each(|entry| entry.and_then(|entry| entry.metadata()).map(drop))?;
        // Still open: spool, map and journal are there.
        let mut open = std::fs::File::create(path.join("open"))?;
        open.write_all(&vec![1; 1 << 20])?;
        std::io::Result::Ok(open)
    });
    let open = made.unwrap();
    let names = assert_private(&world.state_dir());
    let wanted = [
        "spool",
        "map",
        "journal",
        "lease",
        "identity.json",
        "control.sock",
        "bosfs.log",
        "attributes.redb",
        "dir-attributes.log",
    ];
    for name in wanted {
        assert!(names.iter().any(|found| found == name), "{name} was not there to be looked at: {names:?}");
    }
    std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o700)).unwrap();
    let names = assert_private(&store);
    for name in ["credentials", "index.redb", "data"] {
        assert!(names.iter().any(|found| found == name), "{name} was not there to be looked at: {names:?}");
    }
    drop(open);
    let output = run(Command::new(bosfs_binary()).arg("umount").arg(&dir), WAIT);
    assert!(output.status.success(), "{output:?}");
    assert_private(&world.state_dir());
}

/// A mount that must be refused: what it says.
fn refused(spec: &MountSpec) -> String {
    std::fs::create_dir_all(&spec.dir).unwrap();
    let output = run(&mut spec.command(), WAIT);
    if output.status.success() {
        detach(&spec.dir);
        panic!("mounted: {output:?}");
    }
    assert!(!is_mounted(&spec.dir));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A state directory of another user is refused and left alone.
#[test]
fn a_state_directory_of_another_user_is_refused_and_left_alone() {
    crate::need_root();
    let world = World::new();
    let spec = world.spec(&[]);
    for mode in [0o700, 0o755, 0o777] {
        std::fs::create_dir_all(&spec.state_dir).unwrap();
        std::fs::set_permissions(&spec.state_dir, std::fs::Permissions::from_mode(mode)).unwrap();
        chown(&spec.state_dir, Some(NOBODY), Some(NOBODY)).unwrap();
        let message = refused(&spec);
        assert!(message.contains("belongs to user 65534") && message.contains("--state-dir"), "{message}");
        assert_eq!(std::fs::read_dir(&spec.state_dir).unwrap().count(), 0, "written into");
        assert_eq!(std::fs::metadata(&spec.state_dir).unwrap().mode() & 0o7777, mode);
    }
}

#[test]
fn a_link_that_somebody_planted_in_place_of_the_state_directory_is_refused() {
    crate::need_root();
    let world = World::new();
    let spec = world.spec(&[]);
    let target = world.path("target");
    std::fs::create_dir(&target).unwrap();
    symlink(&target, &spec.state_dir).unwrap();
    lchown(&spec.state_dir, Some(NOBODY), Some(NOBODY)).unwrap();
    let message = refused(&spec);
    assert!(message.contains("symbolic link of user 65534"), "{message}");
    assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0, "written through the link");
    // One's own link is one's own affair.
    std::fs::remove_file(&spec.state_dir).unwrap();
    symlink(&target, &spec.state_dir).unwrap();
    drop(spec.mount().unwrap());
    assert!(target.join("identity.json").exists());
}

#[test]
fn a_state_directory_that_a_group_may_write_is_closed() {
    let world = World::new();
    std::fs::create_dir(world.state_dir()).unwrap();
    std::fs::set_permissions(world.state_dir(), std::fs::Permissions::from_mode(0o2770)).unwrap();
    let mount = world.mount(&[]);
    assert_eq!(std::fs::metadata(world.state_dir()).unwrap().mode() & 0o777, 0o700);
    drop(mount);
}

#[test]
fn a_log_or_credentials_aside_that_are_links_lead_nowhere() {
    let world = World::new();
    // What lies in a private folder was put there by its user; what others plant beside it is not followed.
    std::fs::create_dir(world.state_dir()).unwrap();
    let victim = world.path("victim");
    std::fs::write(&victim, b"precious").unwrap();
    for name in ["identity.json.new", "dir-attributes.new", "dir-attributes.log", "control.sock"] {
        symlink(&victim, world.state_dir().join(name)).unwrap();
    }
    let spec = world.spec(&[]);
    // Foreign names make it no state directory; with an identity beside them it is one.
    let message = refused(&spec);
    assert!(message.contains("no state directory of bosfs"), "{message}");
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
}

/// A command as another user.
fn as_nobody(command: &mut Command) -> Output {
    use std::os::unix::process::CommandExt as _;
    run(command.uid(NOBODY).gid(NOBODY).current_dir("/"), WAIT)
}

/// Other users can neither unmount, nor see the status, nor decide over uploads of a mount that is not theirs.
#[test]
fn only_the_owner_commands_a_mount() {
    crate::need_root();
    let world = World::new();
    let mut mount = world.mount(&["--allow-other"]);
    std::fs::set_permissions(world.tmp.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = world.path("program");
    std::fs::copy(bosfs_binary(), &program).unwrap();
    let path = mount.path("kept");
    let open = timed(move || {
        let mut open = std::fs::File::create(path)?;
        open.write_all(b"bytes")?;
        std::io::Result::Ok(open)
    })
    .unwrap();
    let asks = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.args(args).env("HOME", "/").env_remove("XDG_STATE_HOME");
        command
    };
    let dir = mount.dir().to_string_lossy().into_owned();
    let state = world.state_dir().to_string_lossy().into_owned();
    for args in [
        vec!["status", &dir, "--json"],
        vec!["umount", &dir],
        vec!["uploads", "abort", "bkt/kept", "--yes", "--state-dir", &state],
        vec!["uploads", "complete", "bkt/kept", "--state-dir", &state],
    ] {
        let mut command = asks(&args);
        command.env("BCE_ACCESS_KEY_ID", "x").env("BCE_SECRET_ACCESS_KEY", "x").env("BOS_ENDPOINT", "127.0.0.1:1");
        let output = as_nobody(&mut command);
        assert!(!output.status.success(), "{args:?}: {output:?}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!text.contains("kept"), "{args:?} tells of another user's file: {text}");
    }
    // The journal and the socket cannot even be reached.
    let output = as_nobody(Command::new("ls").arg(&state));
    assert!(!output.status.success(), "{output:?}");
    for name in [".bosfs/status.json", ".bosfs/uploads/kept.json"] {
        let output = as_nobody(Command::new("cat").arg(mount.path(name)));
        assert!(!output.status.success() && output.stdout.is_empty(), "{name}: {output:?}");
    }
    assert!(is_mounted(mount.dir()) && !mount.has_ended());
    drop(open);
    let output = mount.umount(WAIT);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(world.bucket.get("kept").unwrap(), b"bytes");
}

#[test]
fn a_request_that_is_none_ends_its_connection_alone() {
    use std::os::unix::net::UnixStream;
    let world = World::new();
    let mut mount = world.mount(&[]);
    let socket = world.state_dir().join("control.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().mode() & 0o777, 0o600);
    let mut held = Vec::new();
    for bytes in [&b"{\n"[..], b"\xff\xfe\n", b"[[[[[[\n", &[b'x'; 64 << 10], b"{\"do\":\"fly\"}\n"] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        // The other side may close before it has taken all.
        let _ = stream.write_all(bytes);
        held.push(stream);
    }
    let end = Instant::now() + WAIT;
    while mount.status().is_null() {
        assert!(Instant::now() < end, "no status any more");
    }
    assert!(!mount.has_ended());
    drop(held);
    let status = mount.end_by(rustix::process::Signal::TERM, WAIT).expect("an end");
    assert!(status.success());
}
