#!/bin/sh
# Installs dpmepf from this folder into a new virtual environment, without a network:
#
#     sh install.sh FOLDER                    (another Python than python3: PYTHON=/path/to/it sh install.sh FOLDER)
#
# Check this folder by hand first, as README.txt says: a script that was changed on its way checks nothing.
set -eu
export LC_ALL=C
export PIP_CONFIG_FILE=/dev/null # together with --isolated: pip takes nothing from this machine's settings
unset PYTHONPATH PYTHONHOME

fail() {
    printf 'Error: %s\n' "$1" >&2
    exit 1
}

[ $# -eq 1 ] || fail "name the folder to install into, which does not exist yet: sh install.sh /opt/dpmepf"
case $1 in /*) folder=$1 ;; *) folder=$PWD/$1 ;; esac
[ ! -e "$folder" ] && [ ! -L "$folder" ] || fail "$folder exists already: name a new folder, or remove that one"
bundle=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=${PYTHON:-python3}

# What was carried in: every file that is listed, as it is listed, and no other.
command -v sha256sum >/dev/null || fail "there is no sha256sum here: without it, what was carried in cannot be checked"
checked=$(cd "$bundle" && sha256sum -c SHA256SUMS 2>/dev/null) || {
    wrong=$(printf '%s\n' "$checked" | grep -v ': OK$' | sed 's/: FAILED.*//' | head -n 1)
    fail "${wrong:-SHA256SUMS} is missing or was changed on its way: have the bundle brought again, do not use this one"
}
expected=$(printf '%s\n' "$checked" | sed -n 's/: OK$//p' | sort)
present=$(cd "$bundle" && find . ! -type d ! -path ./SHA256SUMS | sed 's|^\./||' | sort)
[ "$present" = "$expected" ] || {
    extra=$(printf '%s\n' "$expected" "$expected" "$present" | sort | uniq -u | head -n 1)
    fail "${extra:-a file} is not in SHA256SUMS: remove it if this machine put it there, else do not use this bundle"
}

# The Python and the C library that the wheels are for.
made_for=$(head -n 1 "$bundle/MADE_FOR")
glibc=$(sed -n 's/^glibc 2\.//p' "$bundle/MADE_FOR")
found=$("$python" "$bundle/made_for.py" 2>/dev/null) ||
    fail "$python does not run here, and this bundle is for $made_for: name one with PYTHON=/path/to/python"
[ "$found" = "$made_for" ] ||
    fail "this bundle is for $made_for, but $python is $found: name another with PYTHON=/path/to/python"
here=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/^glibc 2\.\([0-9]*\).*/\1/')
[ -z "$glibc" ] || [ "${here:-0}" -ge "$glibc" ] ||
    fail "this bundle is for glibc 2.$glibc or later, but here is 2.${here:-?}: have one made on a system as old as this"

trap 'rm -rf -- "$folder"' EXIT # until it is whole
trap 'exit 1' HUP INT TERM
printf 'Installing %s wheels into %s (a few minutes)\n' "$(grep -c . "$bundle/requirements.txt")" "$folder" >&2
"$python" -I -m venv "$folder" ||
    fail "$python cannot make a virtual environment: install its venv module (on Debian and Ubuntu python3-venv)"
pip() { "$folder/bin/python" -I -m pip --isolated --disable-pip-version-check "$@"; }
pip install --quiet --no-cache-dir --no-index --find-links "$bundle/wheels" --only-binary :all: --require-hashes \
    --requirement "$bundle/requirements.txt" ||
    fail "pip did not install the bundle, for the reason above, and $folder was removed again"

# Does it run, and is the encoder the one that its model card names?
pip check >&2 || fail "the installed packages do not fit each other, and $folder was removed again"
"$folder/bin/dpmepf-embed" --help >/dev/null || fail "dpmepf-embed does not start, and $folder was removed again"
weights=$("$folder/bin/python" -I -c 'from dpmepf.shared import encoders; print(encoders.BUILTIN_WEIGHTS)')
grep -q "$(sha256sum <"$weights" | cut -c -64)" "$(dirname "$weights")/MODEL_CARD.md" ||
    fail "the built-in encoder is not the one its model card names, and $folder was removed again"
trap - EXIT HUP INT TERM

cat <<END
$(sed -n 's/ --hash.*//; s/^dpmepf==/dpmepf /p' "$bundle/requirements.txt") is installed. Next:
    $folder/bin/dpmepf-embed --eps 2 --dry-run --records 60000 --classes a,b    # the noise to expect; reads nothing
    $folder/bin/dpmepf-embed --data private/ --eps 2 --output artifact.h5       # a release
    $folder/bin/dpmepf-audit artifact.h5                                        # what it claims, recomputed
END
