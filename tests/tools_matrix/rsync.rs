//! `rsync` with the options that change how it writes.

use crate::bench::Bench;
use crate::inputs;
use crate::support::rsync_cost::{Survey, calls_text};
use crate::support::tree::Times;

#[test]
fn rsync_a() {
    let bench = Bench::new(Times::All);
    inputs::tree(&bench);
    let printed = bench.run(
        r#"
        cp -a $IN/tree $SCRATCH/src
        rsync -aX --itemize-changes $SCRATCH/src/ to/ | sort
        echo second; rsync -aX --itemize-changes $SCRATCH/src/ to/
        echo checksums; rsync -aXnc --itemize-changes $SCRATCH/src/ to/
        cd $SCRATCH/src; echo changed > sizes/f4096; printf x | dd of=sizes/f12345678 bs=1 seek=7000000 conv=notrunc status=none
        chmod 0600 sizes/f100000; touch -d @1500000000.123 times/old; rm links/long; ln -s other links/long; mv odd/ümlaut odd/renamed
        touch -d @1500000000.5 sizes/f4096 sizes/f12345678 odd links; touch -h -d @1500000000.25 links/long; cd - > /dev/null
        echo changes; rsync -aX --itemize-changes $SCRATCH/src/ to/ | sort
        echo after; rsync -aXnc --itemize-changes $SCRATCH/src/ to/
        echo out; rsync -aX to/ $OUT/back/; rsync -aXnc --itemize-changes to/ $OUT/back/
        echo inside; rsync -aX to/ inside/; rsync -aXnc --itemize-changes to/ inside/
        touch -d @1500000000.5 .
        "#,
    );
    assert!(printed.contains("second\nchecksums\nchanges\n"), "the second run transferred something\n{printed}");
    bench.finish("rsync -aXn --itemize-changes $SCRATCH/src/ to/; rsync -aXnc --itemize-changes $SCRATCH/src/ to/");
}

#[test]
fn rsync_inplace() {
    let bench = Bench::new(Times::Files);
    inputs::big(&bench);
    bench.run(
        r#"
        cp -p $IN/big $SCRATCH/big; cd $SCRATCH; echo small > small; touch -d @1500000000 small big; cd - > /dev/null
        rsync -a --inplace $SCRATCH/big $SCRATCH/small .
        printf changed | dd of=$SCRATCH/big bs=1 seek=7000000 conv=notrunc status=none; touch -d @1500000001.75 $SCRATCH/big
        rsync -a --inplace --no-whole-file $SCRATCH/big .; cmp big $SCRATCH/big
        truncate -s 11M $SCRATCH/big; touch -d @1500000002.75 $SCRATCH/big; rsync -a --inplace --no-whole-file $SCRATCH/big .
        cat $IN/big >> $SCRATCH/big; touch -d @1500000003.75 $SCRATCH/big; rsync -a --inplace --whole-file $SCRATCH/big .
        rsync -anc --itemize-changes $SCRATCH/big $SCRATCH/small .
        "#,
    );
    bench.finish("rsync -anc --itemize-changes $SCRATCH/big $SCRATCH/small .");
}

#[test]
fn rsync_append_verify() {
    let bench = Bench::new(Times::Files);
    inputs::big(&bench);
    bench.run(
        r#"
        head -c 8000000 $IN/big > right; head -c 8000000 /dev/zero > wrong; head -c 6000000 $IN/big > plain
        for f in right wrong plain; do cp -p $IN/big $SCRATCH/$f; touch -d @1500000000.125 $SCRATCH/$f; done
        rsync -a --append-verify --stats $SCRATCH/right . | grep -E 'Literal|Matched|regular files transferred'
        rsync -a --append-verify $SCRATCH/wrong .
        rsync -a --append $SCRATCH/plain .
        rsync -anc --itemize-changes $SCRATCH/right $SCRATCH/wrong $SCRATCH/plain .
        "#,
    );
    bench.finish("cmp right $IN/big; cmp wrong $IN/big; cmp plain $IN/big");
}

// Cut off by a signal in the middle, then run again.
#[test]
fn rsync_partial() {
    let bench = Bench::new(Times::Files);
    inputs::big(&bench);
    bench.run(
        r#"
        mkdir $SCRATCH/src; for f in a b c; do cp $IN/big $SCRATCH/src/$f; touch -d @1500000000.125 $SCRATCH/src/$f; done
        # The receiver ends a little after the process that got the signal.
        comes() { for _ in $(seq 500); do [ -s "$1" ] && return; sleep 0.02; done; return 1; }
        interrupted() { code=0; timeout -s INT 1.5 rsync -a --bwlimit=6m "$@" 2>/dev/null || code=$?; [ $code = 124 ] || [ $code = 20 ]; }
        interrupted --partial $SCRATCH/src/a .; comes a; refused cmp a $IN/big; ls -A
        rsync -a --partial --no-whole-file $SCRATCH/src/a .
        interrupted --partial-dir=.partial $SCRATCH/src/b .; comes .partial/b; ls -A
        rsync -a --partial-dir=.partial --no-whole-file $SCRATCH/src/b .; ls -A
        interrupted $SCRATCH/src/c .; sleep 0.3; ls -A
        interrupted --partial --inplace $SCRATCH/src/c .; comes c; sleep 0.3; rsync -a --partial --inplace $SCRATCH/src/c .
        rsync -anc --itemize-changes $SCRATCH/src/ .
        "#,
    );
    bench.finish("for f in a b c; do cmp $f $IN/big; done");
}

#[test]
fn rsync_delete() {
    let bench = Bench::new(Times::Files);
    inputs::tree(&bench);
    bench.run(
        r#"
        cp -a $IN/tree $SCRATCH/src; rsync -a $SCRATCH/src/ to/; rsync -a $SCRATCH/src/ backed/
        cd $SCRATCH/src; rm -r odd deep; rm sizes/f4096 links/dangling; mv modes renamed; rm -r empty; echo file > empty
        rm times/old; mkdir times/old; echo x > times/old/x; find . -newermt -1hour -exec touch -h -d @1500000000.5 {} +; cd - > /dev/null
        rsync -a --delete --itemize-changes $SCRATCH/src/ to/ | sort
        rsync -anc --delete --itemize-changes $SCRATCH/src/ to/
        rsync -a --delete-after --backup --backup-dir=../kept $SCRATCH/src/ backed/
        echo two > $SCRATCH/src/empty; touch -d @1500000001.5 $SCRATCH/src/empty
        rsync -a --backup --suffix=.old $SCRATCH/src/ backed/
        rsync -a --remove-source-files to/sizes/ moved/; find to/sizes
        rsync -a --delete --delete-excluded --exclude='*' $SCRATCH/src/ backed/; find backed
        "#,
    );
    bench.finish("find . | sort");
}

#[test]
fn rsync_temp_dir() {
    let bench = Bench::new(Times::Files);
    inputs::tree(&bench);
    bench.run(
        r#"
        mkdir tmp; rsync -a -T $PWD/tmp $IN/tree/ to/; ls -A tmp
        rsync -a -T $SCRATCH $IN/tree/sizes/ fromoutside/
        rsync -a --delay-updates $IN/tree/ delayed/
        cp -a $IN/tree/sizes $SCRATCH/src; for f in $SCRATCH/src/*; do echo more >> $f; touch -d @1500000000.5 $f; done
        rsync -a -T $PWD/tmp $SCRATCH/src/ to/sizes/; rsync -a --delay-updates --no-whole-file $SCRATCH/src/ delayed/sizes/
        rsync -a --fsync $SCRATCH/src/ synced/ 2>/dev/null || rsync -a $SCRATCH/src/ synced/
        ls -A tmp delayed delayed/sizes
        rsync -anc --itemize-changes $SCRATCH/src/ delayed/sizes/; rsync -anc --itemize-changes $SCRATCH/src/ to/sizes/
        rmdir tmp
        "#,
    );
    bench.finish("find . | sort");
}

// A small form of `scripts/rsync-toolchain`.
#[test]
fn rsync_costs_a_put_for_each_file_and_the_second_run_only_listings() {
    let mut bench = Bench::new(Times::All);
    bench.prepare(
        r#"
        mkdir src; for d in $(seq 12); do mkdir -p src/d$d/sub; for f in $(seq 40); do
            seq $((f * d * 9)) > src/d$d/f$f; done; ln -s f1 src/d$d/link; done
        touch 'src/d1/empty' 'src/d1/中文 %+ 名'; head -c 12345678 /dev/urandom > src/big; head -c 5242881 /dev/urandom > src/d2/two
        find src -exec touch -h -d '2020-02-02 02:02:02.123456789 UTC' {} +
        "#,
    );
    let survey = Survey::of(&bench.input().join("src"), 5 << 20).unwrap();
    bench.world.proxy.take_counts();
    bench.run_on_mount("rsync -a $IN/src/ to/");
    let counts = bench.world.proxy.take_counts();
    assert_eq!(survey.first_run_misses(&counts), [] as [String; 0], "{}\n{}", calls_text(&counts), counts.log_text());
    for when in ["at once", "by a new process"] {
        bench.world.proxy.take_counts();
        let itemized = bench.run_on_mount("rsync -a --itemize-changes $IN/src/ to/");
        let counts = bench.world.proxy.counts();
        let misses = survey.unchanged_run_misses(&counts, &itemized);
        assert_eq!(misses, [] as [String; 0], "{when}: {}\n{}", calls_text(&counts), counts.log_text());
        bench.remount(false);
    }
    bench.run("rsync -a $IN/src/ to/");
    bench.finish("rsync -anc --delete --itemize-changes $IN/src/ to/");
}
