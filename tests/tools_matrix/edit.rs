//! Editors, and tools that change files in place.

use crate::bench::Bench;
use crate::inputs;
use crate::support::tree::Times;

#[test]
fn vim_save() {
    let bench = Bench::new(Times::Free).ignoring(&[".undone.un~"]);
    bench.run(
        r#"
        edit() { f=$1; shift; vim -es -u NONE -i NONE -N "$@" -c '%s/old/new/ge' -c "normal Goappended" -c wq "$f"; }
        text() { for i in $(seq ${2:-200}); do echo "line $i with old words"; done > "$1"; }
        text plain; edit plain
        text backup; chmod 0640 backup; edit backup -c 'set backup'
        text nowrite; edit nowrite -c 'set nowritebackup nobackup'
        text copyyes; edit copyyes -c 'set backup backupcopy=yes'
        text copyno; chmod 0755 copyno; edit copyno -c 'set backup backupcopy=no'
        text auto; edit auto -c 'set writebackup backupcopy=auto'
        text swapped; edit swapped -c 'set swapfile updatecount=1'
        text target; ln -s target link; edit link -c 'set backupcopy=auto'
        text '中文 %+ 名.txt'; edit '中文 %+ 名.txt' -c 'set backupcopy=no writebackup'
        text undone; edit undone -c 'set undofile'
        text big 120000; edit big -c 'set backup backupcopy=no'
        edit fresh; mkdir bak; text here; edit here -c 'set backup backupdir=bak'
        vim -es -V1 -u NONE -i NONE -N -c 'saveas saved' -c 'w >> plain' -c 'wq! nowrite' here
        vim -es -u NONE -i NONE -N -c 'set fsync' -c 'wall' -c 'w' -c 'normal Gox' -c 'w' -c 'normal Goy' -c 'x' auto
        ls -A
        "#,
    );
    bench.finish("sha1sum plain copyno auto big");
}

#[test]
fn sed_i() {
    let bench = Bench::new(Times::Free);
    bench.run(
        r#"
        for f in a b c; do seq 1000 > $f; done; chmod 0640 a; chmod 0755 b; seq 900000 > big; ln -s a link
        if [ "$(id -u)" = 0 ]; then chown 1234:5678 a; fi
        sed -i 's/1/one/' a; sed -i.bak 's/2/two/' b; sed -i -e '5d' -e '$a last' c a; sed -i 's/9$/nine/' big
        sed -i --follow-symlinks 's/3/three/' link; sed -n -i '1,10p' c; sed -i 's/x/y/' b
        perl -i -pe 's/4/four/' a; perl -i.orig -ne 'print unless /7/' b
        sort -r -o c c; gawk -i inplace '{print NR, $0}' c
        { diff -u --label b --label b b b.bak || true; } > diff; patch -s b diff
        ls -A; stat -c '%n %a %u %g %s' *
        "#,
    );
    bench.finish("sha1sum *");
}

#[test]
fn dd_conv_notrunc_seek() {
    let bench = Bench::new(Times::Free);
    inputs::big(&bench);
    bench.run(
        r#"
        put() { dd if=$IN/big of=$1 bs=$2 count=$3 seek=$4 skip=${5:-0} conv=notrunc${6:-} status=none; }
        cp $IN/big f
        put f 4096 1 0; put f 1 3 4999999; put f 1M 2 4; put f 7777 100 1234 5; put f 5M 1 1 1; put f 512 1 30000 9
        put f 1M 3 16 ; put f 64K 1 400 ; sync f
        put g 1M 1 7; put g 4K 1 1; put g 1 1 0; put g 3M 2 5 1 ,fsync; put g 4096 10 5000 0 ,fdatasync
        dd if=$IN/big of=direct bs=4096 count=2000 oflag=direct status=none; put direct 4096 3 7 1
        dd if=f of=fromdirect iflag=direct bs=1M status=none; cmp f fromdirect
        dd if=$IN/big of=appended bs=300000 count=30 oflag=append conv=notrunc status=none
        dd if=$IN/big of=appended bs=300000 count=3 oflag=append conv=notrunc status=none
        dd if=/dev/zero of=f bs=1M count=1 seek=2 status=none
        dd if=$IN/big of=h bs=1M conv=sparse status=none; dd if=/dev/zero of=h bs=5M count=1 seek=1 conv=notrunc status=none
        dd if=f of=f bs=1M skip=1 count=1 conv=notrunc status=none
        dd if=/dev/null of=i bs=1 seek=20000000 status=none; put i 1M 1 9
        "#,
    );
    bench.finish("sha1sum *");
}

#[test]
fn split_and_cat() {
    let bench = Bench::new(Times::Free);
    inputs::big(&bench);
    bench.run(
        r#"
        cp $IN/big big; split -b 3M big piece.; split -n 7 -d big part.; seq 100000 > text; split -l 9999 text lines.
        cat piece.* > joined; cat part.* > joined2; cat lines.* > joined3
        cmp big joined; cmp big joined2; cmp text joined3
        head -c 7000000 big > grown; tail -c +7000001 big >> grown; cmp big grown
        cat big | tee t1 t2 | sha1sum; tee -a t1 < text > /dev/null; (cat big; cat text) | cmp - t1
        csplit -s text 100 20000; paste lines.aa lines.ab > pasted; sort -u text lines.* > sorted; shuf --random-source=$IN/big text > shuffled
        cat piece.aa piece.ab > piece.aa.new && mv piece.aa.new piece.aa
        "#,
    );
    bench.finish("cat joined | cmp - big; sha1sum t1 t2");
}

#[test]
fn truncate_and_fallocate() {
    let bench = Bench::new(Times::Free);
    inputs::big(&bench);
    bench.run(
        r#"
        for f in a b c d e f g; do cp $IN/big $f; done
        truncate -s 9000001 a; truncate -s 15000000 a; truncate -s 0 b; truncate -s 6M b; echo tail >> b
        truncate -s +1M c; truncate -s -3M c; truncate -s '%4096' c; truncate -r a d; truncate -c -s 5 missing; truncate -s 12345678 new
        : > e; printf short > e; truncate -s 5242880 f; truncate -s 5242881 f
        fallocate -l 8M made; fallocate -p -o 1000000 -l 7000000 g; fallocate -z -o 9000000 -l 100000 g
        fallocate -n -l 30M g; fallocate -l 20M g; fallocate -d d
        stat -c '%n %s' *
        python3 - <<'PY'
import mmap, os
with open('g', 'r+b') as f:
    m = mmap.mmap(f.fileno(), 0)
    m[5_000_000:5_000_010] = b'by mmap!!!'
    m[0:4] = b'head'; m.flush(); m.close()
with open('a', 'r+b') as f:
    f.seek(10_000_000); f.write(b'x'); f.truncate(); os.fsync(f.fileno()); f.truncate(3_000_000); f.write(b'hole'); f.truncate(11_000_000)
with open('gone', 'w+b') as f:
    os.remove('gone'); f.write(b'still' * 2000000); f.seek(9_999_990); assert f.read() == b'stillstill'
fd = os.open('h', os.O_RDWR | os.O_CREAT); other = os.open('h', os.O_RDWR)
os.pwrite(fd, b'one', 6_000_000); os.pwrite(other, b'two', 100); assert os.pread(other, 3, 6_000_000) == b'one'
os.ftruncate(fd, 6_000_001); assert os.fstat(other).st_size == 6_000_001; os.close(fd); os.pwrite(other, b'end', 6_000_001); os.close(other)
PY
        "#,
    );
    bench.finish("sha1sum *");
}

/// Two processes that append to one log lose no line and tear none, and a log that is renamed under its writer goes on
/// under the new name.
#[test]
fn log_appends_from_two_processes() {
    let bench = Bench::new(Times::Free).ignoring(&["log", "held"]);
    let printed = bench.run(
        r#"
        write() { for i in $(seq 600); do echo "$1 $i $(printf 'x%.0s' {1..60})" >> log; done; }
        write first & a=$!; write second & b=$!; wait $a; wait $b
        wc -l < log; sort log | sha1sum; grep -c '^first ' log; grep -c '^second ' log
        python3 - <<'PY'
import os
def child(name):
    fd = os.open('held', os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for i in range(3000):
        line = b'%s %d %s\n' % (name, i, b'y' * (i % 300))
        assert os.write(fd, line) == len(line)
    os.close(fd)
pids = []
for name in (b'one', b'two'):
    pid = os.fork()
    if pid == 0:
        child(name); os._exit(0)
    pids.append(pid)
for pid in pids:
    assert os.waitpid(pid, 0)[1] == 0
PY
        wc -l < held; sort held | sha1sum
        for n in one two; do grep "^$n " held | cut -d' ' -f2 | sort -n -c && echo in order; done
        exec 3>> rotated; echo before >&3; mv rotated rotated.1; echo still the old one >&3; echo new > rotated; exec 3>&-
        cat rotated rotated.1
        exec 4>> copied; seq 1000 >&4; cp copied copied.1; truncate -s 0 copied; echo after >&4; exec 4>&-; cat copied; wc -l < copied.1
        "#,
    );
    assert!(printed.starts_with("1200\n"), "{printed}");
    bench.finish("sort log | sha1sum; sort held | sha1sum; cat rotated rotated.1 copied");
}
