//! `tar`, `zip`, `unzip`, `python -m zipfile`.

use crate::bench::Bench;
use crate::inputs;
use crate::support::tree::Times;

#[test]
fn tar_x_and_c() {
    let bench = Bench::new(Times::All);
    inputs::tree(&bench);
    bench.prepare("tar --sort=name --numeric-owner -C tree -cf tree.tar .; gzip -1 -n -k tree.tar");
    bench.run(
        r#"
        mkdir x y; tar xpf $IN/tree.tar -C x; tar xzpf $IN/tree.tar.gz -C y --numeric-owner
        tar df $IN/tree.tar -C x
        tar --sort=name --numeric-owner -C x -cf made.tar .
        cmp made.tar $IN/tree.tar
        tar --sort=name --numeric-owner -C x -czf made.tar.gz sizes odd
        cp made.tar appended.tar; tar --numeric-owner --mtime=@1600000000 -rf appended.tar -C $IN/tree odd times
        tar tvf appended.tar | sha1sum
        tar xpf made.tar ./sizes/f12345678 ./odd; tar xpf made.tar -O ./sizes/f5242881 | sha1sum
        tar xpf made.tar --overwrite ./odd; tar xpf made.tar --unlink-first ./sizes/f4096 ./sizes/f5242881 ./odd/plus+plus
        touch -d @1600000000.25 made.tar made.tar.gz appended.tar; touch -d @1600000001.5 odd sizes
        "#,
    );
    bench.finish("tar df made.tar -C x; tar df made.tar -C y; gzip -t made.tar.gz");
}

#[test]
fn zip_and_unzip() {
    let bench = Bench::new(Times::Files);
    inputs::tree(&bench);
    bench.run(
        r#"
        cp -a $IN/tree t; chmod 0600 t/modes/0000
        find t -type f | grep -v -e '-dash' -e '/new$' -e '^line' -e '\*star' -e 'back' -e '\[br' | sort > list
        sort list | zip -q -X -y made.zip -@
        unzip -tqq made.zip
        zip -q -X made.zip t/sizes/f1 t/times/old; zip -q -d made.zip t/sizes/f0
        find t/sizes -type f | sort | zip -q -X -s 3m split.zip -@
        mkdir u; unzip -qq -K made.zip -d u
        echo replaced > u/t/sizes/f4096; unzip -qq -o made.zip t/sizes/f4096 -d u; unzip -qq -n made.zip t/sizes/f4097 -d u
        unzip -Z1 made.zip | sha1sum
        touch -d @1600000000 list; zip -q -X -m moved.zip list
        touch -d @1600000000.25 made.zip moved.zip split.z*
        "#,
    );
    bench.finish("unzip -tqq made.zip; unzip -Z1 made.zip | wc -l");
}

#[test]
fn python_zipfile() {
    let bench = Bench::new(Times::Free);
    inputs::big(&bench);
    bench.run(
        r#"
        mkdir d; cp -p $IN/big d/big; for i in $(seq 40); do echo $i > d/f$i; done
        touch -d @1600000000 d/* d
        python3 -m zipfile -c made.zip $(ls -d d/* | sort)
        python3 -m zipfile -t made.zip; python3 -m zipfile -l made.zip
        python3 -m zipfile -e made.zip x
        cmp x/big d/big || cmp x/d/big d/big
        python3 - <<'PY'
import os, shutil, tempfile, zipfile
with zipfile.ZipFile('made.zip', 'a') as z:
    z.writestr(zipfile.ZipInfo('late', (2020, 1, 1, 0, 0, 0)), b'late' * 1000)
shutil.copytree('d', 'copied')
with tempfile.NamedTemporaryFile('wb', dir='.', delete=False) as f:
    f.write(b'atomic'); name = f.name
os.replace(name, 'atomic')
shutil.make_archive('tarred', 'tar', 'd/../copied', logger=None) and os.remove('tarred.tar')
shutil.move('copied', 'moved')
PY
        python3 -m zipfile -t made.zip
        "#,
    );
    bench.finish("python3 -m zipfile -t made.zip");
}
