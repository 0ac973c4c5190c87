//! Backup programs whose repository is on the mount.

use crate::bench::Bench;
use crate::inputs;
use crate::support::tree::Times;

#[test]
fn borg() {
    let bench = Bench::new(Times::Free).ignoring(&["repo"]);
    inputs::tree(&bench);
    inputs::big(&bench);
    bench.run(
        r#"
        export BORG_BASE_DIR=$SCRATCH/borg BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes BORG_RELOCATED_REPO_ACCESS_IS_OK=yes
        borg init -e none repo
        (cd $IN && borg create $OLDPWD/repo::first tree)
        (cd $IN && borg create $OLDPWD/repo::second tree big)
        borg check repo; borg check --verify-data --archives-only repo
        borg list --short repo
        mkdir restored; (cd restored && borg extract --numeric-ids ../repo::second)
        borg delete repo::first; borg compact repo; borg check repo
        "#,
    );
    bench.finish(
        r#"
        export BORG_BASE_DIR=$SCRATCH/borg BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes BORG_RELOCATED_REPO_ACCESS_IS_OK=yes
        borg check --verify-data repo; borg list --short repo
        "#,
    );
}

#[test]
fn restic() {
    let bench = Bench::new(Times::Free).ignoring(&["repo"]);
    inputs::tree(&bench);
    inputs::big(&bench);
    bench.run(
        r#"
        export RESTIC_REPOSITORY=$PWD/repo RESTIC_PASSWORD=secret RESTIC_CACHE_DIR=$SCRATCH/cache GOMAXPROCS=2
        restic -q init
        (cd $IN && restic -q backup tree)
        (cd $IN && restic -q backup tree big)
        restic -q check --read-data
        restic -q restore latest --target restored
        restic -q forget --keep-last 1 --prune
        restic -q check
        restic -q list snapshots | wc -l
        "#,
    );
    bench.finish(
        r#"
        export RESTIC_REPOSITORY=$PWD/repo RESTIC_PASSWORD=secret RESTIC_CACHE_DIR=$SCRATCH/cache GOMAXPROCS=2
        restic -q check --read-data
        "#,
    );
}
