//! Names, directories and attributes.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::support::World;
use crate::{SMALL_PARTS, WAIT, shell, shell_fails, timed};

/// Folders are made, listed and removed as elsewhere: `rmdir` of a full one is refused, and one that loses its last
/// file stays while it is known.
#[test]
fn directories_are_made_listed_and_removed() {
    let world = World::new();
    world.bucket.put("given/deep/file", b"x").unwrap();
    let mount = world.mount(&[]);
    let dir = mount.dir().display();
    shell(&format!("mkdir -p {dir}/a/b && echo x > {dir}/a/b/f && echo y > {dir}/a/g"));
    assert_eq!(
        shell(&format!("cd {dir} && find . -not -path './.bosfs*' | sort")).lines().collect::<Vec<_>>(),
        [".", "./a", "./a/b", "./a/b/f", "./a/g", "./given", "./given/deep", "./given/deep/file"]
    );
    assert_eq!(world.bucket.list("a/").unwrap(), ["a/", "a/b/", "a/b/f", "a/g"]);
    assert!(shell_fails(&format!("rmdir {dir}/a/b")).contains("not empty"));
    shell(&format!("rm {dir}/a/b/f && rmdir {dir}/a/b && rm -r {dir}/a"));
    assert_eq!(world.bucket.list("a/").unwrap(), [] as [&str; 0]);
    // A directory without a marker stays while it is known, also without children.
    shell(&format!("rm {dir}/given/deep/file && test -d {dir}/given/deep && rmdir {dir}/given/deep"));
}

/// `.bosfs` is not listed, `.bosfs/status.json` can be read, and nothing in it can be written or removed.
#[test]
fn the_hidden_directory_shows_status_and_is_not_listed() {
    let world = World::new();
    let mount = world.mount(&[]);
    let dir = mount.dir().display();
    assert!(!shell(&format!("ls -a {dir}")).contains(".bosfs"));
    let status: serde_json::Value = serde_json::from_str(&shell(&format!("cat {dir}/.bosfs/status.json"))).unwrap();
    assert_eq!(status["bucket"], "bkt");
    shell_fails(&format!("echo x > {dir}/.bosfs/status.json"));
    shell_fails(&format!("rm {dir}/.bosfs/status.json"));
}

#[test]
fn an_upload_under_way_is_shown_under_its_encoded_key() {
    use crate::support::{Call, HoldAt, When};
    let world = World::new();
    let source = world.random_file("source", 1, 12 << 20);
    let mount = world.mount(&["--part-size", "5MiB", "--write-back"]);
    let dir = mount.dir().display();
    let hold = world.proxy.hold(When::call(Call::UploadPart).part(3), HoldAt::BeforeForward);
    shell(&format!("mkdir {dir}/d && cp {} '{dir}/d/a b'", source.display()));
    assert!(hold.wait_hit(WAIT));
    let names = shell(&format!("ls {dir}/.bosfs/uploads"));
    assert!(names.contains("d%2Fa%20b.json"), "{names}");
    let shown: serde_json::Value =
        serde_json::from_str(&shell(&format!("cat {dir}/.bosfs/uploads/d%2Fa%20b.json"))).unwrap();
    assert_eq!(shown["key"], "d/a b");
    assert_eq!(shown["parts_total"], 3);
    assert!(shown["upload_id"].is_string());
    hold.release();
    mount.wait_settled("d/a b", WAIT);
    world.assert_object_is_file("d/a b", &source);
}

#[test]
fn renamed_files_keep_their_bytes() {
    let world = World::new();
    world.bucket.put("old", b"content").unwrap();
    world.bucket.put("taken", b"other").unwrap();
    let mount = world.mount(&[]);
    let dir = mount.dir().display();
    shell(&format!("mkdir {dir}/d && mv {dir}/old {dir}/d/new && mv {dir}/d/new {dir}/taken"));
    assert_eq!(world.bucket.get("taken").unwrap(), b"content");
    assert_eq!(shell(&format!("cat {dir}/taken")), "content");
    assert!(world.bucket.head("old").unwrap().is_none() && world.bucket.head("d/new").unwrap().is_none());
    shell(&format!("echo fresh > {dir}/f && mv {dir}/f {dir}/g && cat {dir}/g"));
    assert_eq!(world.bucket.get("g").unwrap(), b"fresh\n");
}

/// A removed file lives on, to be read and written, for those who have it open; the object goes with them.
#[test]
fn an_unlinked_file_lives_on_for_those_who_have_it_open() {
    let world = World::new();
    world.bucket.put("f", b"old content").unwrap();
    let mount = world.mount(&[]);
    let path = mount.path("f");
    timed(move || {
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(!path.exists());
        let mut bytes = [0; 11];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"old content");
        file.write_all_at(b"NEW", 0).unwrap();
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"NEW content");
    });
    let end = std::time::Instant::now() + WAIT;
    while world.bucket.head("f").unwrap().is_some() {
        assert!(std::time::Instant::now() < end, "the object stays");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// `O_EXCL` fails with EEXIST on a name that is there.
#[test]
fn exclusive_creation_fails_on_what_is_there() {
    let world = World::new();
    world.bucket.put("there", b"x").unwrap();
    let mount = world.mount(&[]);
    let (there, fresh) = (mount.path("there"), mount.path("fresh"));
    timed(move || {
        let error = OpenOptions::new().write(true).create_new(true).open(there).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
        let mut file = OpenOptions::new().write(true).create_new(true).open(fresh).unwrap();
        file.write_all(b"mine").unwrap();
    });
    assert_eq!(world.bucket.get("fresh").unwrap(), b"mine");
    assert_eq!(world.bucket.get("there").unwrap(), b"x");
}

/// Mode and time are stored as BOSFS 1.0 stores them (`x-bce-meta-bosfs-mode`, `-mtime`, decimal).
#[test]
fn mode_owner_and_time_travel_with_the_object() {
    let world = World::new();
    let mut mount = world.mount(&[]);
    let path = mount.path("f");
    let dir = mount.dir().display().to_string();
    shell(&format!("echo x > {dir}/f && chmod 640 {dir}/f && touch -d 2001-02-03T04:05:06.5Z {dir}/f"));
    shell(&format!("install -m 755 /bin/true {dir}/program && cp -p /etc/hostname {dir}/stamped 2>/dev/null || true"));
    let output = mount.umount(WAIT);
    assert!(output.status.success(), "{output:?}\n{}", mount.log_text());
    let reply = world.bucket.head_reply("f").unwrap().unwrap();
    assert_eq!(reply.header("x-bce-meta-bosfs-mode"), Some("33184"), "{reply:?}");
    assert_eq!(reply.header("x-bce-meta-bosfs-mtime"), Some("981173106"), "{reply:?}");
    let mount = world.mount(&[]);
    let meta = timed(move || std::fs::metadata(path).unwrap());
    assert_eq!((meta.mode() & 0o7777, meta.mtime(), meta.size()), (0o640, 981_173_106, 2));
    assert_eq!(shell(&format!("stat -c %a {}/program", mount.dir().display())).trim(), "755");
}

/// `v1` and `json-api`, which BOS takes off the front of a path, are names like others, also at the top of a bucket that
/// is addressed by its host name.
#[test]
fn names_that_bos_takes_off_the_front_of_a_path_reach_their_own_objects() {
    let world = World::new();
    world.bucket.put("a", b"another object").unwrap();
    // By its host name the bucket is only reached through a proxy: no name leads to this machine.
    let mut spec = world.spec(&SMALL_PARTS);
    spec.endpoint = "http://bj.bcebos.com".to_owned();
    spec.env = vec![("http_proxy".to_owned(), format!("http://{}", world.server.addr()))];
    let mut mount = spec.mount().unwrap();
    let dir = mount.dir().display().to_string();
    for top in ["v1", "V1", "json-api"] {
        shell(&format!("mkdir {dir}/{top} && echo {top} > {dir}/{top}/a && echo x > {dir}/{top}/gone"));
        shell(&format!("head -c 12000000 /dev/zero > {dir}/{top}/large && mv {dir}/{top}/gone {dir}/{top}/moved"));
        shell(&format!("chmod 600 {dir}/{top}/a && cp {dir}/{top}/a {dir}/{top}/copied && rm {dir}/{top}/moved"));
    }
    shell(&format!("echo file > {dir}/v1-not && mv {dir}/v1 {dir}/w && echo top > {dir}/v1"));
    let output = mount.umount(WAIT);
    assert!(output.status.success(), "{output:?}\n{}", mount.log_text());
    // Looked at in path style, where nothing is taken off.
    let mut keys = world.bucket.list("").unwrap();
    keys.sort();
    let below = |top: &str| ["", "a", "copied", "large"].map(|name| format!("{top}/{name}"));
    let mut expected = [below("V1"), below("json-api"), below("w")].concat();
    expected.extend(["a", "v1", "v1-not"].map(str::to_owned));
    expected.sort();
    assert_eq!(keys, expected);
    assert_eq!(world.bucket.get("a").unwrap(), b"another object");
    assert_eq!(world.bucket.get("w/a").unwrap(), b"v1\n");
    assert_eq!(world.bucket.get("v1").unwrap(), b"top\n");
    assert_eq!(world.bucket.head("json-api/large").unwrap().unwrap().size, 12_000_000);
}

/// Names longer than 255 bytes and keys longer than 1023 give ENAMETOOLONG; blanks, quotes, tabs, `+`, `%` and Chinese are
/// names like others.
#[test]
fn names_that_bos_refuses_give_clear_errors() {
    let world = World::new();
    let mount = world.mount(&[]);
    let long = mount.path(&"n".repeat(256));
    let deep = mount.dir().to_owned();
    timed(move || {
        assert_eq!(std::fs::write(long, b"x").unwrap_err().raw_os_error(), Some(libc::ENAMETOOLONG));
        let mut path = deep;
        let mut refused = None;
        for _ in 0..6 {
            path.push("d".repeat(200));
            if let Err(error) = std::fs::create_dir(&path) {
                refused = Some(error);
                break;
            }
        }
        assert_eq!(refused.expect("a key of 1200 bytes").raw_os_error(), Some(libc::ENAMETOOLONG));
    });
    let odd = ["with space", "目录", "a+b%c", "quote'\"", "tab\there", "-dash"];
    for name in odd {
        let (path, key) = (mount.path(name), name.to_owned());
        timed(move || std::fs::write(path, key.as_bytes()).unwrap());
        assert_eq!(world.bucket.get(name).unwrap(), name.as_bytes());
    }
    let dir = mount.dir().to_owned();
    let mut listed = timed(move || {
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    });
    listed.retain(|name| !name.starts_with("ddd"));
    listed.sort();
    let mut expected: Vec<_> = odd.iter().map(|name| (*name).to_owned()).collect();
    expected.sort();
    assert_eq!(listed, expected);
}

/// A mount of `BUCKET/PREFIX` shows and writes only what is below the prefix.
#[test]
fn a_prefix_is_a_mount_of_its_own() {
    let world = World::new();
    world.bucket.put("in/f", b"inside").unwrap();
    world.bucket.put("out", b"outside").unwrap();
    let mut spec = world.spec(&[]);
    spec.target = "bkt/in".into();
    let mount = spec.mount().unwrap();
    assert_eq!(shell(&format!("ls {}", mount.dir().display())).trim(), "f");
    shell(&format!("echo new > {}/g", mount.dir().display()));
    assert_eq!(world.bucket.get("in/g").unwrap(), b"new\n");
}

#[test]
fn df_answers_with_room() {
    let world = World::new();
    let mount = world.mount(&[]);
    let free = shell(&format!("df --output=avail -B1 {} | tail -1", mount.dir().display()));
    assert!(free.trim().parse::<u64>().unwrap() > 1 << 30, "{free}");
}
