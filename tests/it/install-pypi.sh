#!/usr/bin/env bash
# install-pypi.sh NAME REQUIREMENTS: puts the packages of REQUIREMENTS, each pinned by version and SHA-256, into
# .cache/pypi/NAME/<digest of what pins them and of the Python>, and prints that path. Does nothing when they are there
# already; nothing is installed outside .cache. To run one: PYTHONPATH=<path> python3 <path>/bin/PROGRAM.
set -euo pipefail

name=$1 requirements=$2
cache=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/.cache/pypi/$name

say() { echo "install-$name: $*" >&2; }
die() { say "$*"; exit 1; }

command -v python3 >/dev/null || die "python3 is needed, 3.11 or later"
python3 -m pip --version >/dev/null 2>&1 ||
    die "pip is needed for python3 (on Debian, as root: apt-get install python3-pip)"
digest=$({ python3 -VV && cat "$requirements"; } | sha256sum | cut -c1-16)
place=$cache/$digest

mkdir -p "$cache"
# Several tests may want it: the first one in installs, the others wait for it here.
exec 9>"$cache/lock"
flock 9
if [ -f "$place/installed" ]; then echo "$place"; exit 0; fi

work=$(mktemp -d "$cache/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
say "installing"
python3 -m pip --disable-pip-version-check install --quiet --no-deps --no-cache-dir --only-binary :all: \
    --require-hashes --target "$work/site" --requirement "$requirements" >"$cache/pip.log" 2>&1 </dev/null ||
    die "pip could not install it: $(tail -3 "$cache/pip.log")"
touch "$work/site/installed"
rm -rf "$place"
mv "$work/site" "$place"
say "it is in $place"
echo "$place"
