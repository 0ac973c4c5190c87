//! `sqlite3`.

use crate::bench::Bench;
use crate::support::tree::Times;

#[test]
fn sqlite3_rollback_journal() {
    let bench = Bench::new(Times::Free).ignoring(&["shared.db", "persist.db-journal"]);
    let printed = bench.run(
        r#"
        for mode in delete truncate persist memory; do
            sqlite3 $mode.db "pragma journal_mode=$mode" "create table t(id integer primary key, v text)" \
                "create index i on t(v)" \
                "with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000) insert into t select i, hex(i * 7919) || printf('%0100d', i) from n" \
                "update t set v = v || 'x' where id % 7 = 0" "delete from t where id % 5 = 0" \
                "begin; delete from t; rollback" "select count(*), sum(length(v)) from t" "pragma integrity_check"
        done
        sqlite3 delete.db "vacuum" "pragma integrity_check" ".backup backup.db" "vacuum into 'vacuumed.db'"
        sqlite3 backup.db "pragma integrity_check" "select count(*) from t"
        stat -c '%n %s' *.db
        sqlite3 shared.db 'create table t(w, n)'
        for w in 1 2; do (for n in $(seq 25); do echo "insert into t values($w, $n);"; done | sqlite3 -cmd '.timeout 60000' shared.db) & pids="${pids:-} $!"; done
        for pid in $pids; do wait $pid; done
        sqlite3 shared.db 'pragma integrity_check' 'select w, count(*), sum(n) from t group by w'
        # Killed in the middle of a transaction: the journal rolls it back.
        mkfifo $SCRATCH/pipe; sqlite3 delete.db < $SCRATCH/pipe > $SCRATCH/answer & sqlite=$!
        exec 3> $SCRATCH/pipe
        echo "pragma cache_size=100; begin; update t set v = 'lost'; select 'reached', count(*) from t where v = 'lost';" >&3
        for i in $(seq 2000); do grep -q reached $SCRATCH/answer && break; sleep 0.02; done
        grep -q reached $SCRATCH/answer; [ -s delete.db-journal ]
        kill -9 $sqlite; wait $sqlite || true; exec 3>&-; rm $SCRATCH/pipe
        sqlite3 delete.db "select count(*) from t where v = 'lost'" "pragma integrity_check"; ls
        "#,
    );
    assert!(printed.matches("ok").count() > 7, "{printed}");
    bench.finish("for db in *.db; do sqlite3 -readonly $db 'pragma integrity_check'; done");
}

// Write-ahead logging needs shared memory between the processes: it works, or it is refused and the database stays
// whole.
#[test]
fn sqlite3_wal() {
    let bench = Bench::new(Times::Free);
    let mode = bench.run_on_mount(
        r#"
        sqlite3 wal.db 'create table t(w, n)'
        sqlite3 wal.db 'pragma journal_mode=wal'
        "#,
    );
    assert!(["wal", "delete"].contains(&mode.trim()), "journal_mode gives {mode:?}");
    let printed = bench.run_on_mount(
        r#"
        for w in 1 2; do (for n in $(seq 200); do echo "insert into t values($w, $n);"; done | sqlite3 -cmd '.timeout 60000' wal.db) & pids="${pids:-} $!"; done
        for i in $(seq 20); do sqlite3 -cmd '.timeout 60000' wal.db 'select count(*) from t' > /dev/null; done
        for pid in $pids; do wait $pid; done
        sqlite3 wal.db 'pragma integrity_check' 'select w, count(*), sum(n) from t group by w'
        "#,
    );
    assert_eq!(printed, "ok\n1|200|20100\n2|200|20100\n", "journal_mode {mode}");
    let mut bench = bench;
    for empty_state in [false, true] {
        bench.remount(empty_state);
        let again = bench.run_on_mount("sqlite3 wal.db 'pragma integrity_check' 'select count(*) from t'");
        assert_eq!(again, "ok\n400\n");
    }
}
