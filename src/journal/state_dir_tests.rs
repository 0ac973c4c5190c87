use super::*;

fn identity() -> Identity {
    Identity { endpoint: "https://bj.bcebos.com".into(), bucket: "photos".into(), prefix: "2024/".into() }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_new_state_directory_is_private_and_opens_again() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("a/b");
    let state = StateDir::open(&path, &identity()).unwrap();
    assert_eq!(mode(&path), 0o700);
    for (name, expected) in [("lease", 0o600), ("identity.json", 0o600), ("uploads", 0o700), ("trash", 0o700)] {
        assert_eq!(mode(&path.join(name)), expected, "{name}");
    }
    assert_eq!(read_identity(&path), Some(identity()));
    drop(state);
    StateDir::open(&path, &identity()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    StateDir::open(&path, &identity()).unwrap();
    assert_eq!(mode(&path), 0o700, "its mode is set right again");
}

#[test]
fn a_second_process_is_told_who_holds_it_and_how_to_end_that() {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::open(home.path(), &identity()).unwrap();
    assert_eq!(read_holder(home.path()).unwrap().pid, std::process::id());
    let long = Holder::this_process(Some("/mnt/a very long name of a mount point".into()), Some("/run/s".into()));
    state.set_holder(&long).unwrap();
    state.set_holder(&Holder::this_process(Some("/mnt/bos".into()), None)).unwrap();
    let held = StateDir::open(home.path(), &identity()).unwrap_err();
    let text = held.to_string();
    assert!(matches!(held, StateDirError::Held { .. }), "{text}");
    for part in [&format!("process {}", std::process::id()), "bosfs umount /mnt/bos", home.path().to_str().unwrap()] {
        assert!(text.contains(part), "{text}");
    }
    drop(state);
    assert_eq!(read_holder(home.path()), None, "what the file still says counts no more");
    StateDir::open(home.path(), &identity()).unwrap();
}

#[test]
fn a_lease_without_a_readable_holder_is_still_held() {
    let home = tempfile::tempdir().unwrap();
    let _state = StateDir::open(home.path(), &identity()).unwrap();
    fs::write(home.path().join("lease"), b"\xff\0{").unwrap();
    assert_eq!(read_holder(home.path()).unwrap(), Holder::default());
    let text = StateDir::open(home.path(), &identity()).unwrap_err().to_string();
    assert!(text.contains("did not leave its name"), "{text}");
}

#[test]
fn asking_who_holds_it_never_keeps_another_one_out() {
    let home = tempfile::tempdir().unwrap();
    drop(StateDir::open(home.path(), &identity()).unwrap());
    let path = home.path().to_owned();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asking = std::thread::spawn({
        let stop = stop.clone();
        move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = read_holder(&path);
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
        }
    });
    let opened = (0..20).all(|_| StateDir::open(home.path(), &identity()).is_ok());
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    asking.join().unwrap();
    assert!(opened);
}

#[test]
fn the_state_of_another_place_is_refused_and_named() {
    let home = tempfile::tempdir().unwrap();
    drop(StateDir::open(home.path(), &identity()).unwrap());
    for other in [
        Identity { bucket: "music".into(), ..identity() },
        Identity { prefix: String::new(), ..identity() },
        Identity { endpoint: "https://gz.bcebos.com".into(), ..identity() },
    ] {
        let error = StateDir::open(home.path(), &other).unwrap_err();
        assert!(matches!(error, StateDirError::OtherIdentity { .. }), "{error}");
        assert!(error.to_string().contains("photos/2024/ at https://bj.bcebos.com"), "{error}");
    }
    fs::write(home.path().join("identity.json"), br#"{"format":2,"shape":"new"}"#).unwrap();
    assert!(matches!(StateDir::open(home.path(), &identity()), Err(StateDirError::Newer { format: 2, .. })));
    for text in ["", "{", "[]", r#"{"format":1,"bucket":"photos"}"#] {
        fs::write(home.path().join("identity.json"), text).unwrap();
        let error = StateDir::open(home.path(), &identity()).unwrap_err();
        assert!(matches!(error, StateDirError::DamagedIdentity { .. }), "{text}: {error}");
    }
}

#[test]
fn foreign_directories_and_files_are_not_taken_over() {
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(home.path().join("thesis.tex"), "x").unwrap();
    let error = StateDir::open(home.path(), &identity()).unwrap_err();
    assert!(matches!(error, StateDirError::Foreign { .. }), "{error}");
    assert_eq!((mode(home.path()), fs::read_dir(home.path()).unwrap().count()), (0o755, 1), "nothing was touched");
    let error = StateDir::open(&home.path().join("thesis.tex"), &identity()).unwrap_err();
    assert!(matches!(error, StateDirError::NotADirectory { .. }), "{error}");
    let error = StateDir::open(&home.path().join("thesis.tex/below"), &identity()).unwrap_err();
    assert!(matches!(error, StateDirError::NotADirectory { .. }), "{error}");
}

#[test]
fn what_a_crash_left_of_a_first_start_is_taken_over() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("lease"), "").unwrap();
    fs::write(home.path().join("identity.json.new"), "{\"for").unwrap();
    fs::write(home.path().join("probe.17"), "x").unwrap();
    StateDir::open(home.path(), &identity()).unwrap();
    assert_eq!(read_identity(home.path()), Some(identity()));
}

#[test]
fn system_errors_become_advice() {
    let advice = |errno| StateDirError::of(Path::new("/s"), "trying it out", io::Error::from_raw_os_error(errno));
    assert!(matches!(advice(libc::ENOSPC), StateDirError::Full { .. }));
    assert!(matches!(advice(libc::EDQUOT), StateDirError::Full { .. }));
    assert!(matches!(advice(libc::EROFS), StateDirError::NotWritable { .. }));
    assert!(matches!(advice(libc::EACCES), StateDirError::NotWritable { .. }));
    assert!(matches!(advice(libc::ENOLCK), StateDirError::Unfit { .. }));
    for errno in [libc::ENOSPC, libc::EROFS, libc::EIO] {
        let text = advice(errno).to_string();
        assert!(text.contains("/s ") && text.contains("--state-dir"), "{text}");
    }
}

#[test]
fn uploads_come_go_and_are_listed() {
    let home = tempfile::tempdir().unwrap();
    let state = StateDir::open(home.path(), &identity()).unwrap();
    assert_eq!(state.uploads().unwrap(), Vec::<PathBuf>::new());
    let (id, one) = state.create_upload().unwrap();
    let (_, two) = state.create_upload().unwrap();
    assert!(is_journal_id(&id) && one.ends_with(format!("uploads/{id}")) && one != two);
    assert_eq!(mode(&one), 0o700);
    fs::write(one.join("spool"), "bytes").unwrap();
    state.sync_upload(&one).unwrap();
    fs::create_dir(home.path().join("uploads/NOT-AN-ID-NOT-AN")).unwrap();
    fs::write(home.path().join("uploads/0123456789abcdef"), "a file").unwrap();
    let mut expected = vec![one.clone(), two.clone()];
    expected.sort();
    assert_eq!(state.uploads().unwrap(), expected);
    assert_eq!(uploads_in(state.path()).unwrap(), expected);

    state.remove_upload(&one).unwrap();
    state.remove_upload(&one).unwrap();
    assert_eq!(state.uploads().unwrap(), [two]);
    assert_eq!(fs::read_dir(home.path().join("trash")).unwrap().count(), 0);
    for outside in [home.path(), &home.path().join("uploads"), &home.path().join("uploads/..")] {
        assert!(state.remove_upload(outside).is_err(), "{}", outside.display());
    }
    assert!(home.path().join("identity.json").exists());
}

#[test]
fn leftovers_in_the_trash_go_at_the_next_start() {
    let home = tempfile::tempdir().unwrap();
    drop(StateDir::open(home.path(), &identity()).unwrap());
    fs::create_dir(home.path().join("trash/0123456789abcdef.1")).unwrap();
    fs::write(home.path().join("trash/0123456789abcdef.1/spool"), "x").unwrap();
    fs::write(home.path().join("trash/file"), "x").unwrap();
    StateDir::open(home.path(), &identity()).unwrap();
    assert_eq!(fs::read_dir(home.path().join("trash")).unwrap().count(), 0);
}

#[test]
fn default_names_are_readable_and_differ_wherever_the_place_does() {
    let name = default_name(&identity());
    assert!(name.starts_with("photos_2024-"), "{name}");
    let mut names = vec![name];
    for other in [
        Identity { bucket: "photo".into(), prefix: "s_2024/".into(), ..identity() },
        Identity { endpoint: "http://bj.bcebos.com".into(), ..identity() },
        Identity { prefix: "2024".into(), ..identity() },
        Identity { prefix: "\u{76ee}/../".repeat(200), ..identity() },
    ] {
        let name = default_name(&other);
        assert!(name.len() <= 80 && !name.contains('/') && !name.contains('.'), "{name}");
        assert!(!names.contains(&name), "{name}");
        names.push(name);
    }
    assert!(default_path(&identity()).is_absolute());
}

#[test]
fn state_directories_are_found_under_a_root() {
    let root = tempfile::tempdir().unwrap();
    assert_eq!(list_state_dirs_in(&root.path().join("missing")), Vec::<PathBuf>::new());
    let path = root.path().join(default_name(&identity()));
    drop(StateDir::open(&path, &identity()).unwrap());
    fs::create_dir(root.path().join("something-else")).unwrap();
    assert_eq!(list_state_dirs_in(root.path()), [path]);
}

#[test]
fn a_boot_keeps_its_identity() {
    assert_eq!(boot_id(), boot_id());
    assert!(boot_id().len() >= 8);
}

/// The other process of the test below.
#[test]
#[ignore = "started by a_killed_process_holds_nothing"]
fn child_that_holds_the_lease_until_it_is_killed() {
    let Some(path) = std::env::var_os("BOSFS_TEST_LEASE_DIR") else { return };
    let _state = StateDir::open(Path::new(&path), &identity()).unwrap();
    println!("held");
    std::thread::sleep(std::time::Duration::from_secs(60));
}

#[test]
fn a_killed_process_holds_nothing() {
    use std::io::BufRead as _;
    let home = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--nocapture", "--exact"])
        .arg("journal::state_dir::tests::child_that_holds_the_lease_until_it_is_killed")
        .env("BOSFS_TEST_LEASE_DIR", home.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let output = io::BufReader::new(child.stdout.take().unwrap());
    assert!(output.lines().any(|line| line.unwrap().ends_with("held")));
    assert_eq!(read_holder(home.path()).unwrap().pid, child.id());
    let error = StateDir::open(home.path(), &identity()).unwrap_err().to_string();
    assert!(error.contains(&format!("process {}", child.id())), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(read_holder(home.path()), None);
    StateDir::open(home.path(), &identity()).unwrap();
}
