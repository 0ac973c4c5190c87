//! Wrong input to `bosfs mount`: a clear message, the documented exit code, nothing left mounted.

use std::process::Output;
use std::time::Duration;

use crate::support::mounted::{is_mounted, run};
use crate::support::{MountSpec, World};
use crate::{WAIT, shell};

/// Mounts as a daemon would; must fail.
fn fails(spec: &MountSpec) -> (Option<i32>, String) {
    let output: Output = run(spec.command().env_remove("BCE_ACCESS_KEY_ID"), Duration::from_secs(60));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        crate::support::mounted::detach(&spec.dir);
        panic!("mounted: {output:?}");
    }
    assert!(!is_mounted(&spec.dir), "left mounted\n{text}");
    assert!(text.contains("bosfs:"), "no message: {output:?}");
    (output.status.code(), text)
}

fn world_with_dir() -> World {
    let world = World::new();
    std::fs::create_dir(world.path("mnt")).unwrap();
    world
}

#[test]
fn wrong_secret_and_missing_file_of_credentials() {
    let world = world_with_dir();
    let mut spec = world.spec(&[]);
    spec.credentials = world.path("wrong");
    let text = "[defaults]\nbce_access_key_id = testaccesskey\nbce_secret_access_key = verysecretvalue\n";
    std::fs::write(&spec.credentials, text).unwrap();
    let (code, message) = fails(&spec);
    assert_eq!(code, Some(5), "{message}");
    assert!(!message.contains("verysecretvalue"), "the secret is printed: {message}");
    spec.credentials = world.path("absent");
    let (code, message) = fails(&spec);
    assert_eq!(code, Some(5), "{message}");
    assert!(message.contains("absent"), "{message}");
}

#[test]
fn a_bucket_that_does_not_exist() {
    let world = world_with_dir();
    let mut spec = world.spec(&[]);
    spec.target = "no-such-bucket".into();
    let (code, message) = fails(&spec);
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("no-such-bucket"), "{message}");
}

#[test]
fn an_endpoint_that_refuses() {
    let world = world_with_dir();
    let mut spec = world.spec(&[]);
    spec.endpoint = "http://127.0.0.1:1".into();
    let (code, message) = fails(&spec);
    assert_eq!(code, Some(6), "{message}");
    assert!(message.contains("127.0.0.1:1"), "{message}");
}

#[test]
fn a_mount_point_that_is_missing_a_file_or_not_empty() {
    let world = World::new();
    let spec = world.spec(&[]);
    let (_, message) = fails(&spec);
    assert!(message.contains("mnt"), "{message}");
    std::fs::write(&spec.dir, b"a file").unwrap();
    fails(&spec);
    std::fs::remove_file(&spec.dir).unwrap();
    std::fs::create_dir(&spec.dir).unwrap();
    std::fs::write(spec.dir.join("x"), b"").unwrap();
    let (_, message) = fails(&spec);
    assert!(message.contains("empty"), "{message}");
}

/// A second mount with the same state directory is refused and names the process that holds it.
#[test]
fn a_state_directory_that_another_process_holds_is_told_with_its_holder() {
    let world = World::new();
    let mount = world.mount(&[]);
    let mut second = world.spec(&[]);
    second.dir = world.path("second");
    std::fs::create_dir(&second.dir).unwrap();
    let (_, message) = fails(&second);
    assert!(message.contains(&mount.pid().unwrap().to_string()), "names no holder: {message}");
    // The first one is unharmed.
    shell(&format!("echo x > {}/f", mount.dir().display()));
    // With a state directory of its own the same bucket is mounted twice.
    second.state_dir = world.path("second-state");
    let other = second.mount().unwrap();
    assert_eq!(shell(&format!("cat {}/f", other.dir().display())), "x\n");
}

#[test]
fn a_mount_point_that_is_mounted_already() {
    let world = World::new();
    let mount = world.mount(&[]);
    let mut second = world.spec(&[]);
    second.state_dir = world.path("second-state");
    let output = run(&mut second.command(), WAIT);
    assert!(!output.status.success(), "mounted over a mount");
    shell(&format!("ls {}", mount.dir().display()));
}

/// A state directory of another bucket or prefix, or one inside a mount of bosfs, is refused.
#[test]
fn a_state_directory_of_another_bucket_or_inside_the_mount() {
    let world = World::new();
    let mut first = world.mount(&[]);
    first.umount(WAIT);
    drop(first);
    let mut spec = world.spec(&[]);
    spec.target = "bkt/other-prefix".into();
    let (_, message) = fails(&spec);
    assert!(message.contains("state"), "{message}");
    let mount = world.mount(&[]);
    let mut inside = world.spec(&[]);
    inside.dir = world.path("inside");
    std::fs::create_dir(&inside.dir).unwrap();
    inside.state_dir = mount.path("state-in-mount");
    fails(&inside);
}

/// A mount point that is dead since a kill is taken over by the next mount.
#[test]
fn a_dead_mount_left_by_a_kill_is_taken_over() {
    let world = World::new();
    let mount = world.mount(&[]);
    shell(&format!("kill -KILL {}", mount.pid().unwrap()));
    // The mount point now answers "Transport endpoint is not connected" until someone takes it away.
    let again = world.spec(&[]).mount().unwrap();
    shell(&format!("echo x > {}/f", again.dir().display()));
    assert_eq!(world.bucket.get("f").unwrap(), b"x\n");
    std::mem::forget(mount);
}

/// `bosfs mount` returns 0 once the mount answers.
#[test]
fn the_daemon_returns_once_the_mount_answers() {
    let world = world_with_dir();
    world.bucket.put("f", b"x").unwrap();
    let spec = world.spec(&["--log-file", &world.path("daemon.log").display().to_string()]);
    let output = run(&mut spec.command(), WAIT);
    assert!(output.status.success(), "{output:?}");
    assert!(is_mounted(&spec.dir));
    assert_eq!(shell(&format!("cat {}/f", spec.dir.display())), "x");
    let output =
        run(std::process::Command::new(crate::support::mounted::bosfs_binary()).arg("umount").arg(&spec.dir), WAIT);
    assert!(output.status.success(), "{output:?}");
    assert!(!is_mounted(&spec.dir));
}
