#!/usr/bin/env bash
# Build the images and run the deployment under faults; images of others that cannot be pulled are
# made here. IMAGES=keep takes the images that are there.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! docker info >/dev/null 2>&1; then
  exec .venv/bin/python -m tests.compose "$@"
fi
can_use() { docker image inspect "$1" >/dev/null 2>&1 || docker pull --quiet "$1" >/dev/null 2>&1; }
if ! can_use "${BASE:-python:3.13-slim-bookworm}" || ! can_use "${POSTGRES_IMAGE:-postgres:18}" \
  || ! can_use "${HAPROXY_IMAGE:-haproxy:3.0}"; then
  echo "images cannot be pulled: using ones made of Debian's packages"
  compose/local_images.sh
  export BASE=gatehouse-base:local POSTGRES_IMAGE=gatehouse-postgres:local
  export HAPROXY_IMAGE=gatehouse-haproxy:local
fi
if [ "${IMAGES:-build}" != keep ]; then
  compose/image.sh gatehouse
  compose/image.sh idp
fi
compose/prepare.sh >/dev/null
exec .venv/bin/python -m tests.compose "$@"
