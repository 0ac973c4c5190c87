//! A tree with everything that a tree may have.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::files::write_random;
use super::mounted::run;

/// Makes it at `tree`: files around the sizes where something changes, odd names, modes, owners, times with nanoseconds,
/// symlinks, empty and deep folders, a sparse file, xattrs of files (bosfs refuses those of directories).
pub fn make(tree: &Path) {
    std::fs::create_dir_all(tree.join("sizes")).unwrap();
    let sizes = [0, 1, 4095, 4096, 4097, 100_000, (5 << 20) - 1, 5 << 20, (5 << 20) + 1, 12_345_678];
    for (n, size) in sizes.into_iter().enumerate() {
        write_random(&tree.join(format!("sizes/f{size}")), n as u64, size).unwrap();
    }
    let mut command = Command::new("bash");
    let output = run(command.args(["-euo", "pipefail", "-c", TREE]).current_dir(tree), Duration::from_secs(60));
    assert!(output.status.success(), "making the tree: {output:?}");
}

const TREE: &str = r#"
umask 022
odd=('中文 文件名.txt' ' leading and trailing ' 'per%20cent%zz' 'plus+plus' $'new\nline' "quo'te\"s" 'back\slash' '-dash'
     '.hidden' 'a?b#c&d=e;f:g@h!i$j' '~tilde' 'ümlaut' '😀' '*star*' '[brackets]' 'x.y.z' '...' "$(printf 'n%.0s' {1..255})"
     "$(printf '中%.0s' {1..85})")
mkdir odd modes empty 'a directory' links times
for name in "${odd[@]}"; do printf 'content of %s' "$name" > "odd/./$name"; done
mkdir 'odd/中文 目录 %2F+'; echo in > 'odd/中文 目录 %2F+/in it'
for mode in 0644 0600 0755 0400 0444 0000 0777 4755 2755 1644 6711; do echo $mode > modes/$mode; chmod $mode modes/$mode; done
mkdir -m 0700 modes/d0700; mkdir -m 1777 modes/d1777; mkdir -m 2775 modes/d2775
if [ "$(id -u)" = 0 ]; then
    echo other > modes/owner; chown 1234:5678 modes/owner
    mkdir modes/owned; echo x > modes/owned/f; chown -R 65534:100 modes/owned
    ln -s nowhere links/owned; chown -h 1234:5678 links/owned
fi
deep=deep; for i in $(seq 20); do deep=$deep/level$i; done; mkdir -p $deep; echo bottom > $deep/file
ln -s ../sizes/f4096 links/relative; ln -s /etc/hostname links/absolute; ln -s nowhere links/dangling
ln -s ../sizes links/dir; ln -s "$(printf 't%.0s' {1..200})/$(printf 'u%.0s' {1..200})" links/long; ln -s '中文 %+' 'links/中文 链接'
truncate -s 9M sparse; printf middle | dd of=sparse bs=1 seek=6000000 conv=notrunc status=none
python3 - <<'PY'
import os
os.setxattr('sizes/f4097', 'user.comment', b'a comment \xff')
os.setxattr('sizes/f5242881', 'user.of.two.parts', b'value')
PY
touch -d '2001-02-03 04:05:06.123456789 UTC' times/old; touch -d '1970-01-01 00:00:01.000000001 UTC' times/early
touch -d '2038-01-19 03:14:08.999999999 UTC' times/late; touch -d '2024-02-29 23:59:59 UTC' times/whole
touch -h -d '2011-11-11 11:11:11.111111111 UTC' links/dangling
n=0; find sizes odd modes deep -type f -print0 | sort -z | while IFS= read -r -d '' f; do
    n=$((n + 1)); touch -d "2020-01-01 00:00:00.$(printf %09d $((n * 7654321 % 1000000000))) UTC" "./$f"; done
# Not now: rsync leaves a time alone that has the right second.
find links -type l ! -name dangling -exec touch -h -d '2012-12-12 12:12:12.121212121 UTC' {} +
find . -depth -type d -exec touch -d '2019-05-06 07:08:09.987654321 UTC' {} +
"#;
