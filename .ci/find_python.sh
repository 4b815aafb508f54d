#!/bin/sh
# Print the path of a Python that diptych can be installed with (3.11 or newer, with venv; on a Mac for arm64), or say what is there and how
# to get one. Looks at $PYTHON alone where that is set, else on the PATH, then in the folders given as arguments.

REPORT='
import platform, sys
try:
    import ensurepip, venv
    has_venv = "venv"
except ImportError:
    has_venv = "bare"
age = "old" if sys.version_info < (3, 11) else "new"
print("%s %s %s %s" % (platform.python_version(), age, has_venv, platform.machine()))
'
NAMES="python3.14 python3.13 python3.12 python3.11 python3"
seen=""

mac_trouble() {  # machine: print why a Python for it cannot run MLX on this Mac
    [ "$(uname -s)" = Darwin ] && [ "$1" = x86_64 ] || return 0
    if [ "$(sysctl -n hw.optional.arm64 2>/dev/null)" = 1 ]; then
        echo "is for x86_64 and runs under Rosetta, where MLX does not work; install one for arm64 (the Homebrew in /usr/local is for x86_64, the one in /opt/homebrew for arm64), and if 'uname -m' says x86_64, open a terminal that is not under Rosetta itself"
    else
        echo "is for an Intel processor; MLX on macOS needs Apple Silicon"
    fi
}

trouble() {  # version old|new venv|bare machine: print why a Python cannot be used, or nothing
    if [ "$2" = old ]; then
        echo "is older than 3.11"
    elif [ "$3" = bare ]; then
        echo "has no venv module; on Debian and Ubuntu: sudo apt install python${1%.*}-venv"
    else
        mac_trouble "$4"
    fi
}

consider() {  # path: print it and exit where it can be used, else remember why not
    report=$("$1" -c "$REPORT" 2>/dev/null) || return 0
    # shellcheck disable=SC2086  # four words
    why=$(trouble $report)
    if [ -z "$why" ]; then
        printf '%s\n' "$1"
        exit 0
    fi
    seen="$seen
  $1 (${report%% *}) $why"
}

look_in_folders() {  # folders
    for name in $NAMES; do
        for folder in "$@"; do
            if [ -x "$folder/$name" ]; then consider "$folder/$name"; fi
        done
    done
}

if [ -n "${PYTHON:-}" ]; then
    consider "$PYTHON"
    [ -n "$seen" ] || seen="
  $PYTHON (named by PYTHON) does not run"
else
    for name in $NAMES; do
        path=$(command -v "$name") && consider "$path"
    done
    look_in_folders "$@"
fi

{
    printf 'Error: diptych needs Python 3.11 or newer. Found: %s\n' "${seen:-no python3 at all}"
    cat <<'HOW'
To get one:
  macOS           brew install python@3.13, or the installer from https://www.python.org/downloads/
  Debian, Ubuntu  sudo apt install python3 python3-venv
  anywhere        uv python install 3.13, then: make setup PYTHON="$(uv python find 3.13)"
Then run make again; PYTHON=/path/to/python3 names one that is not found by itself.
HOW
} >&2
exit 1
