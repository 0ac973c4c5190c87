//! `cp` and `mv`.

use crate::bench::Bench;
use crate::inputs;
use crate::support::Call;
use crate::support::tree::Times;

/// `cp -a` in and out of the mount keeps modes, times, links, sparse files and odd names as a local folder does, also
/// for a mount that knows nothing but what is in BOS.
#[test]
fn cp_a() {
    let bench = Bench::new(Times::All);
    inputs::tree(&bench);
    bench.run(
        r#"
        cp -a $IN/tree in
        cp -a in $OUT/back
        cp -a in/odd in/modes in/links in/sizes .
        cp -p in/sizes/f12345678 'in/a directory/copied'
        cp -a --parents in/times/old modes
        cp -a in/sizes/f100000 in/sizes/f4096; cp -a -n in/sizes/f1 in/sizes/f4097; cp -a -u in/times/late in/times/early
        cp -a -f in/modes/0755 in/modes/0400; cp -a --remove-destination in/sizes/f1 in/links/absolute
        cp -a --backup=numbered in/sizes/f4097 in/sizes/f1
        cp --preserve=all --sparse=always in/sparse sparse
        find in -depth -type d -exec touch -d '2019-05-06 07:08:09.987654321 UTC' {} +
        touch -d '2019-05-06 07:08:09.5 UTC' modes
        "#,
    );
    bench.finish("cp -a in/sizes/f12345678 $OUT/again; cmp in/sizes/f12345678 $OUT/again; rm $OUT/again");
}

/// Extended attributes of folders are refused with EOPNOTSUPP, and `cp -a` goes on without them.
#[test]
fn xattrs_of_directories_are_refused() {
    let bench = Bench::new(Times::Free);
    bench.run_on_mount(
        r#"
        python3 - <<'PY'
import errno, os
os.mkdir('d'); os.mkdir(os.environ['IN'] + '/d'); os.setxattr(os.environ['IN'] + '/d', 'user.a', b'value')
try:
    os.setxattr('d', 'user.a', b'value')
except OSError as e:
    assert e.errno == errno.EOPNOTSUPP, e
else:
    raise SystemExit('kept: move this test to the tree of cp_a')
PY
        cp -a $IN/d e; refused cp -r --preserve=xattr $IN/d f; [ -d e ]
        "#,
    );
}

#[test]
fn cp_inside_the_mount_sends_no_byte() {
    let bench = Bench::new(Times::Free);
    inputs::big(&bench);
    bench.run("cp $IN/big big");
    bench.world.proxy.take_counts();
    bench.run("cp big copy; cp --reflink=auto big second; cmp big copy; cmp big second");
    let counts = bench.world.proxy.counts();
    let told = counts.log_text();
    // At the ends of a copied range there may be a block that is not a whole one.
    assert!(counts.bytes_sent() < 64 << 10, "{} bytes were sent\n{told}", counts.bytes_sent());
    assert!(counts.requests(Call::UploadPartCopy) + counts.requests(Call::CopyObject) > 0, "{told}");
    bench.finish("cmp big copy; cmp big second");
}

#[test]
fn mv_in_out_inside() {
    let bench = Bench::new(Times::Files);
    inputs::tree(&bench);
    bench.run(
        r#"
        cp -a $IN/tree $SCRATCH/t
        mv $SCRATCH/t in
        [ ! -e $SCRATCH/t ]
        mv in/sizes/f12345678 in/sizes/renamed; mv in/sizes/f4096 in/sizes/f4097
        mv in/odd/'中文 文件名.txt' in/odd/'另 一个%.txt'; mv in/links/dir in/links/dir2; mv in/links/relative 'in/a directory/'
        mv in/sizes 'in/大小'; mv in/empty in/still-empty; mv in/deep/level1/level2 in/level2
        mkdir target target/modes; mv -T in/modes target/modes
        mv in/odd target/
        mkdir full; echo x > full/x
        refused mv -T full target
        refused mv target target/modes
        refused mv in nowhere/in
        echo 1 > one; echo 2 > two; touch -d @1500000000.75 one two full/x; mv -n one two; mv -b two full/x; mv full/x renamed; mv renamed full/x; cat one full/x
        mv one in/level2/level3
        mv target/modes/4755 target/modes/now
        mv in/times $OUT/times; mv target/odd $OUT/odd; mv 'in/大小/renamed' $OUT/
        ls -A target full in
        "#,
    );
    bench.finish("find . | sort");
}
