//! `git`.

use crate::bench::Bench;
use crate::support::tree::Times;

/// A repository of 200 commits over the sources of crates that building bosfs has put on this machine.
const REPOSITORY: &str = r#"
git init -q -b main repo; cd repo
source=$(ls -d "$CARGO_HOME"/registry/src/*/ | head -1)
find "$source" -name '*.rs' -size -40k -not -path '*/target/*' 2>/dev/null | sort > ../all
head -400 ../all > ../sources
[ "$(wc -l < ../sources)" -ge 200 ]
n=0
while read -r f; do
    n=$((n + 1)); to=src/$((n % 17))/$(basename "$(dirname "$f")"); mkdir -p "$to"; cp "$f" "$to/$n-$(basename "$f")"
    [ $((n % 2)) = 0 ] || continue
    echo "change $n" >> CHANGES
    export GIT_AUTHOR_DATE="@$((1600000000 + n)) +0000" GIT_COMMITTER_DATE="@$((1600000000 + n)) +0000"
    git add -A; git commit -q -m "commit $n"
    [ $n != 320 ] || git gc -q
done < ../sources
git tag v1; git branch topic HEAD~20
"#;

#[test]
fn git_clone_gc_fsck() {
    let home = std::env::var("HOME").unwrap_or_default();
    let cargo_home = std::env::var("CARGO_HOME").unwrap_or(format!("{home}/.cargo"));
    let name = "tester@example.com";
    let bench = Bench::new(Times::Free)
        // Inode numbers and times of the machine are in the index.
        .ignoring(&[
            "clone/.git/index",
            "packed/.git/index",
            "tree/.git",
            "clone/.git/worktrees",
            "clone/.git/logs",
            "packed/.git/logs",
            "clone/.git/objects/info/commit-graph",
            // Packed by two threads, and without hard links: other packs of the same objects; `git fsck` looks into them.
            "bare/objects/info",
            "bare/objects/pack",
            "clone/.git/objects/info",
            "bare/FETCH_HEAD",
            "clone/.git/config",
            "packed/.git/config",
            "bare/config",
            "clone/.git/objects/pack",
            "packed/.git/objects/pack",
            "clone/.git/gc.log",
        ])
        .env("CARGO_HOME", &cargo_home)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_NAME", "tester")
        .env("GIT_AUTHOR_EMAIL", name)
        .env("GIT_COMMITTER_NAME", "tester")
        .env("GIT_COMMITTER_EMAIL", name)
        .env("GIT_AUTHOR_DATE", "@1700000000 +0000")
        .env("GIT_COMMITTER_DATE", "@1700000000 +0000");
    bench.prepare(REPOSITORY);
    bench.run(
        r#"
        git clone -q $IN/repo clone
        git clone -q file://$IN/repo packed
        git -C packed fsck --full --strict
        cd clone; git status --porcelain; git log --oneline | sha1sum; git fsck --full --strict
        echo more >> CHANGES; mkdir new; echo new > 'new/新 文件'; git add -A; git commit -q -m more; git status --porcelain
        git checkout -q -b work v1~5; echo work > work; git add work; git commit -q -m work; git rebase -q main
        git checkout -q main; git merge -q --no-ff -m merged work; git mv new renamed; git commit -q -m renamed
        echo dirty >> CHANGES; git stash -q; git stash pop -q; git checkout -q -- CHANGES
        git rm -q -r renamed; git commit -q -m removed; git reset -q --hard HEAD~1
        git gc -q --prune=now; git fsck --full --strict
        git repack -q -a -d -f --depth=10; git prune; git pack-refs --all; git reflog expire --expire=now --all; git gc -q --prune=now
        git count-objects -v | grep -E 'count|packs|garbage'
        git fsck --full --strict; git status --porcelain; git rev-parse HEAD
        git worktree add -q ../tree topic; git -C ../tree status --porcelain
        git archive --format=tar v1 | sha1sum
        cd ..; git clone -q --bare clone bare; git -C bare fsck --full
        cd packed; git pull -q ../clone main; git push -q ../bare HEAD:refs/heads/pushed; git rev-parse HEAD; git -C ../bare rev-parse pushed
        "#,
    );
    bench.finish(
        r#"
        for r in clone packed bare; do git -C $r fsck --full --strict; git -C $r log --oneline --all | sha1sum; done
        git -C clone status --porcelain; git -C packed status --porcelain
        "#,
    );
}
