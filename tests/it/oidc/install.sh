#!/usr/bin/env bash
# Puts the OpenID provider of the tests (npm oidc-provider) into .cache/npm/oidc-provider/<digest of the lock file> and
# prints that path. Does nothing when it is there already. Every package is pinned by version and integrity in
# package-lock.json, and no package's scripts are run. Nothing is installed outside .cache but node itself, when it is
# missing and apt-get may do it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$(cd "$here/../../.." && pwd)/.cache/npm/oidc-provider
digest=$(sha256sum "$here/package-lock.json" | cut -c1-16)
place=$cache/$digest

say() { echo "install-oidc-provider: $*" >&2; }
die() { say "$*"; exit 1; }

mkdir -p "$cache"
# Several tests may want it: the first one in installs, the others wait for it here.
exec 9>"$cache/lock"
flock 9
if ! { command -v node && command -v npm; } >/dev/null; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
        die "node and npm are needed (on Debian, as root: apt-get install nodejs npm)"
    say "installing nodejs and npm"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends nodejs npm; } \
        >"$cache/apt.log" 2>&1 </dev/null || die "apt-get could not install nodejs and npm: see $cache/apt.log"
fi
if [ -f "$place/installed" ]; then echo "$place"; exit 0; fi

work=$(mktemp -d "$cache/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
cp "$here/package.json" "$here/package-lock.json" "$work/"
say "installing oidc-provider"
(cd "$work" && npm ci --ignore-scripts --no-audit --no-fund --omit=dev) >"$cache/npm.log" 2>&1 </dev/null ||
    die "npm could not install oidc-provider: $(tail -3 "$cache/npm.log")"
touch "$work/installed"
rm -rf "$place"
mv "$work" "$place"
trap - EXIT
echo "$place"
