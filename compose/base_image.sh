#!/usr/bin/env bash
# A base image of Debian's packages, where no image can be pulled: base_image.sh TAG [PACKAGE...].
# Needs root, debootstrap and Docker.
set -euo pipefail

tag=${1:-gatehouse-base:local}
shift || true
packages=$(IFS=,; echo "ca-certificates,python3${*:+,$*}")
suite=${DEBIAN_SUITE:-bookworm}

command -v debootstrap >/dev/null || { echo "debootstrap is missing: apt install debootstrap"; exit 1; }
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
echo "making $tag of Debian $suite with ${packages//,/, } (about a minute)"
debootstrap --variant=minbase --include="$packages" "$suite" "$root/tree" \
  "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$root/log" 2>&1 \
  || { tail -n 20 "$root/log"; exit 1; }
tar -C "$root/tree" --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' \
  --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' \
  -c . | docker import - "$tag" >/dev/null
