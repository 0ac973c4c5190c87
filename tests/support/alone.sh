# For a mount namespace of one's own. It begins with a copy of every mount, and a copy of somebody else's FUSE mount keeps the
# session of that mount alive: an unmount outside would wait until this namespace ends. So all of them are let go, but for those
# in the folder $1.
leave_other_mounts() {
    awk -v own="$1/" '
        { at[$1] = $5; above[$1] = $2; ids[NR] = $1; for (i = 7; i < NF; i++) if ($i == "-") type[$1] = $(i + 1) }
        END {
            for (n = NR; n > 0; n--) {
                id = ids[n]
                if (type[id] ~ /^fuse\.(bosfs|faultdisk)/ && index(at[id], own) != 1) print at[above[id]], at[id]
            }
        }' /proc/self/mountinfo |
        while read -r above at; do
            # Not passed on to the namespace that the copy came from.
            mount --make-private "$above" 2>/dev/null && umount -i -l "$at" 2>/dev/null
        done
    return 0
}
