#!/usr/bin/env bash
# Installs kubectl, kubernetes-validate and hadolint; and systemd-analyze, as root on Debian, where it is missing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if ! command -v systemd-analyze >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "install-deploy: systemd-analyze is needed (on Debian, as root: apt-get install systemd)" >&2; exit 1
    fi
    echo "install-deploy: installing systemd, for systemd-analyze" >&2
    said=$({ apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends systemd; } \
        2>&1 </dev/null) || { tail -3 <<<"$said" >&2; exit 1; }
fi
exec "$here/../install-pypi.sh" deploy "$here/requirements.txt"
