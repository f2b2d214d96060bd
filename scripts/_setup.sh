# Sourced by the scripts beside it (POSIX sh): makes `.venv` from nothing but a bare Debian or Ubuntu.
#
# `setup PROGRAM...` installs what is missing of the named programs, of what pyfuse3 is compiled with and of Python, then the
# workspace with the versions of constraints.txt, and puts `.venv/bin` first on PATH. A stamp makes the next run start at once.

root=$(cd "$(dirname "$0")/.." && pwd)
venv=$root/.venv
log=$root/.venv.log
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV

say() { printf '%s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

setup() {
    missing=
    for program; do command -v "$program" >/dev/null || missing="$missing $(package_of "$program")"; done
    find_python || missing="$missing python3 python3-venv python3-dev"
    if ! up_to_date; then
        # The compiler and the headers are wanted only when pyfuse3 is built.
        command -v cc >/dev/null || missing="$missing gcc libc6-dev"
        command -v pkg-config >/dev/null || missing="$missing pkg-config"
        pkg-config --exists fuse3 2>/dev/null || missing="$missing libfuse3-dev"
        [ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$missing ca-certificates"
        [ -z "$python" ] || can_make_venv || missing="$missing python3-venv python3-dev"
    fi
    if [ -n "$missing" ]; then
        install_packages $missing
        find_python || die "fusekit needs Python 3.11 or newer, and python3 here is older; name one: PYTHON=/path/to/python3.12 $0"
    fi
    up_to_date || make_venv
    PATH=$venv/bin:$PATH
    export PATH
}

package_of() {
    case $1 in
        fusermount3) echo fuse3 ;;
        setfattr) echo attr ;;
        setfacl) echo acl ;;
        find) echo findutils ;;
        flock | mountpoint) echo util-linux ;;
        ps) echo procps ;;
        *) echo "$1" ;;
    esac
}

# Debian's python3 is asked first, then newer ones that somebody put beside it. Of a virtual environment, .venv itself or another
# that is active, the Python that it was made from is taken, so that every shell comes to the same answer.
find_python() {
    for python in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        found=$("$python" -c 'import os, sys; v = sys.version_info; v >= (3, 11) and print(f"{v[0]}.{v[1]}", os.path.realpath(sys._base_executable))' 2>/dev/null) || continue
        [ -n "$found" ] || continue
        version=${found%% *} python=${found#* }
        return 0
    done
    python=
    return 1
}

can_make_venv() {
    "$python" -c 'import ensurepip, os, sys, sysconfig, venv; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' 2>/dev/null
}

install_packages() {
    say "fusekit: installing Debian packages: $*"
    command -v apt-get >/dev/null || die "this script installs packages with apt-get only; please install the like of: $*"
    as_root=
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || die "not root, and no sudo; please run as root: apt-get install -y $*"
        as_root=sudo
        [ -t 0 ] || as_root="sudo -n"
        $as_root true || die "sudo does not let us; please run as root: apt-get install -y $*"
    fi
    {
        $as_root apt-get update -q &&
            $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
    } </dev/null >"$log" 2>&1 || { tail -n 20 "$log" >&2; die "apt-get failed (all of it: $log)"; }
}

stamp() {
    cat "$root"/constraints.txt "$root"/pyproject.toml "$root"/packages/*/pyproject.toml "$root"/scripts/_setup.sh | sha256sum
    echo "$python $version $root"
}

up_to_date() {
    [ -n "$python" ] && [ -x "$venv/bin/python" ] && [ "$(stamp)" = "$(cat "$venv/stamp" 2>/dev/null)" ] &&
        "$venv/bin/python" -c 'import fusekit' 2>/dev/null
}

make_venv() {
    can_make_venv || die "$python lacks venv, ensurepip or its headers; install them, or name another: PYTHON=/usr/bin/python3 $0"
    say "fusekit: making .venv with Python $version (about a minute)"
    {
        "$python" -m venv --clear "$venv" && install_workspace
    } </dev/null >"$log" 2>&1 || { tail -n 20 "$log" >&2; die "making .venv failed (all of it: $log)"; }
    stamp >"$venv/stamp"
}

# Every file is checked against its hash in constraints.txt. pyfuse3 comes as source only and would, by default, be built in an
# environment of unpinned packages; so the others go first, and it is built with those. The distributions themselves likewise.
install_workspace() {
    sed '/^pyfuse3==/,/[^\\]$/d' "$root/constraints.txt" >"$venv/wheels.txt"
    sed -n '/^pyfuse3==/,/[^\\]$/p' "$root/constraints.txt" >"$venv/source.txt"
    set --
    for distribution in "$root"/packages/*/; do set -- "$@" --editable "$distribution"; done
    pip_install --require-hashes --only-binary :all: --requirement "$venv/wheels.txt" &&
        pip_install --require-hashes --no-build-isolation --requirement "$venv/source.txt" &&
        pip_install --no-build-isolation "$@"
}

pip_install() { "$venv/bin/python" -m pip --disable-pip-version-check install --no-deps "$@"; }
