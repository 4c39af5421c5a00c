#!/usr/bin/env bash
# Build an image: compose/image.sh gatehouse|idp. BASE: a Debian-like image with Python to build on.
# The packages are fetched here and checked against the lock file; the build itself needs no network.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-gatehouse} in
  gatehouse) tag=${GATEHOUSE_IMAGE:-gatehouse:local} lock=compose/requirements.lock file=Dockerfile ;;
  idp) tag=${IDP_IMAGE:-gatehouse-idp:local} lock=compose/idp.lock file=idp.Dockerfile ;;
  *) echo "there is no image $1: gatehouse or idp"; exit 2 ;;
esac
base=${BASE:-python:3.13-slim-bookworm}
context=compose/.context/${tag//[^a-z0-9.-]/-}

docker image inspect "$base" >/dev/null 2>&1 || docker pull --quiet "$base" || {
  echo "There is no image $base and it cannot be pulled. Name another by BASE=..., or make one of"
  echo "Debian's packages (needs root and debootstrap): make base-image BASE=gatehouse-base:local"
  exit 1
}
python=$(docker run --rm --network none --entrypoint python3 "$base" \
  -c 'import sys; print("%d.%d" % sys.version_info[:2])')

echo "1/3 fetching the pinned packages for Python $python"
mkdir -p "$context/wheels"
rm -f "$context"/wheels/gatehouse-*.whl
cp "$lock" "$context/requirements.lock"
cp .venv/bin/uv "$context/uv"
.venv/bin/python -m pip download --quiet --disable-pip-version-check --require-hashes --no-deps \
  --only-binary=:all: --python-version "$python" --find-links "$context/wheels" \
  --dest "$context/wheels" -r "$lock"

if [ "$file" = Dockerfile ]; then
  echo "2/3 building Gatehouse's own package"
  .venv/bin/uv build --quiet --wheel --no-build-isolation --python .venv/bin/python \
    --out-dir "$context/wheels" .
fi

echo "3/3 building $tag"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
DOCKER_BUILDKIT=${DOCKER_BUILDKIT:-0} docker build --build-arg "BASE=$base" --tag "$tag" \
  --file "compose/$file" "$context" >"$log" 2>&1 || { cat "$log"; exit 1; }
docker image inspect --format '{{.Size}}' "$tag" \
  | awk -v tag="$tag" '{ printf "%s: %.0f MB\n", tag, $1 / 1e6 }'
