#!/usr/bin/env bash
# Puts schemathesis, which calls an API in every way that its OpenAPI document allows and many that it does not, into
# .cache/pypi/schemathesis/<digest of what pins it and of the Python>, and prints that path. Does nothing when it is there
# already. Every package is pinned by version and SHA-256 in requirements.txt; nothing is installed outside .cache.
# To run it: PYTHONPATH=<path> python3 <path>/bin/schemathesis.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$(cd "$here/../../.." && pwd)/.cache/pypi/schemathesis
requirements=$here/requirements.txt

say() { echo "install-schemathesis: $*" >&2; }
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
say "installing schemathesis"
python3 -m pip --disable-pip-version-check install --quiet --no-deps --no-cache-dir --only-binary :all: \
    --require-hashes --target "$work/site" --requirement "$requirements" >"$cache/pip.log" 2>&1 </dev/null ||
    die "pip could not install schemathesis: $(tail -3 "$cache/pip.log")"
touch "$work/site/installed"
rm -rf "$place"
mv "$work/site" "$place"
say "schemathesis is in $place"
echo "$place"
