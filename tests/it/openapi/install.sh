#!/usr/bin/env bash
# Installs schemathesis, which calls an API in every way that its OpenAPI document allows and many that it does not.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec "$here/../install-pypi.sh" schemathesis "$here/requirements.txt"
