# Functions for the other scripts: install what is missing on Debian and its relatives. Nothing is touched that is there.

say() { printf '%s\n' "$*" >&2; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else say "This needs root: $*"; return 1
    fi
}

# need_package PACKAGE...: installs them.
need_package() {
    command -v apt-get >/dev/null || { say "Please install $* by hand: there is no apt-get here."; return 1; }
    say "== installing $*"
    if [ -z "${apt_updated:-}" ]; then
        as_root apt-get update -qq
        apt_updated=1
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# need_command COMMAND PACKAGE: installs the package if the command is missing.
need_command() {
    command -v "$1" >/dev/null || need_package "$2"
}

# need_commands COMMAND=PACKAGE...: installs the packages of all missing commands at once.
need_commands() {
    local missing=() pair
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -eq 0 ] || need_package "${missing[@]}"
}

# The programs that tests/tools_matrix.rs runs on a mount, and those that tests/process.rs runs bosfs with.
need_tools() {
    need_commands rsync=rsync zip=zip unzip=unzip git=git sqlite3=sqlite3 vim=vim gcc=gcc make=make ffmpeg=ffmpeg \
        wget=wget curl=curl restic=restic borg=borgbackup perl=perl patch=patch bc=bc gawk=gawk \
        faketime=faketime unshare=util-linux
}

need_rust() {
    if ! command -v cargo >/dev/null && [ -f "$HOME/.cargo/env" ]; then
        . "$HOME/.cargo/env"
    fi
    if ! command -v cargo >/dev/null; then
        say "Rust is missing. Install it with: curl https://sh.rustup.rs -sSf | sh -s -- -y"
        return 1
    fi
    # make: for the allocator.
    need_commands cc=gcc make=make
}

need_fuse() {
    [ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
    [ -e /dev/fuse ] || { say "There is no /dev/fuse here (in a container: --device /dev/fuse --cap-add SYS_ADMIN)."; return 1; }
}
