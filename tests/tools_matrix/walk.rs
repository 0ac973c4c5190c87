//! `find`, `du`, `ls`, `touch`, `chmod`, `chown`, `rm`.

use crate::bench::Bench;
use crate::inputs;
use crate::support::tree::Times;

#[test]
fn find_du_touch_chmod() {
    let bench = Bench::new(Times::All);
    inputs::tree(&bench);
    bench.run(
        r#"
        cp -a $IN/tree t
        show() { find t -mindepth 1 \( -type d -printf '%P %y %m %U %G %T@\0' -o -printf '%P %y %s %m %U %G %T@ %l\0' \) | sort -z | tr '\0' '\n'; }
        show
        find t -type f -size +4096c | sort; find t -type f -perm -4000 | sort; find t -newermt 2021-01-01 | sort; find t -type l | sort
        find t -empty | sort; find t -maxdepth 2 -name '*中*' | sort; find t -xtype l | sort
        find t -type f -print0 | sort -z | du -b --files0-from=- | cut -f1 | paste -sd+ | bc
        touch -d '2022-03-04 05:06:07.123456789 UTC' t/sizes/f1 t/sizes/f12345678 t/empty 'odd name'
        touch -m -d '2022-03-04 05:06:07.5 UTC' t/sizes/f0; touch -r t/times/old t/sizes/f4095; touch -c -d @5 missing
        touch -h -d '2013-03-04 05:06:07.000000001 UTC' t/links/relative; touch -d @0 t/times/whole; touch -d @4294967296.5 t/times/late
        # A new entry gives its directory the time of the run, which is another one on each side.
        touch -d '1969-07-20 20:17:40.25 UTC' t/times/moon; touch -d '2021-02-03 04:05:06.789 UTC' t/times
        chmod -R u+rwX,g-w,o=r t/modes; chmod 0640 t/odd/*; chmod g+s t/empty; chmod 7777 t/sizes/f4096; chmod u-x,o+t 'a file' 2>/dev/null || true
        if [ "$(id -u)" = 0 ]; then
            chown -R 12:34 t/odd; chown -h 99:98 t/links/dangling; chgrp 77 t/sizes/f4096; chown 5:5 t/modes/4755; chown 7 t/empty
        fi
        show; ls -AR t | sha1sum; stat -c '%n %F %a %u %g %Y' t/modes/* t/empty
        find t/deep -depth -type d -empty -delete; find t/odd -type f -name '*+*' -delete; rm -f t/sizes/f4095
        refused rmdir t/odd; rmdir t/empty; rm -rf t/deep; mkdir -p t/again/and/again; rm -r t/again
        touch -d '2022-01-01 01:01:01.25 UTC' t/odd t/sizes t/links t/times t
        show
        "#,
    );
    bench.finish(
        "find t -mindepth 1 \\( -type d -printf '%P %y %m %U %G %T@\\0' -o -printf '%P %y %s %m %U %G %T@ %l\\0' \\) \
         | sort -z | tr '\\0' '\\n'",
    );
}
