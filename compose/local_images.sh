#!/usr/bin/env bash
# What compose/ otherwise pulls, made of Debian's packages: a base with Python, PostgreSQL, HAProxy.
# Needs root, debootstrap and Docker. What is there already is kept.
set -euo pipefail
cd "$(dirname "$0")"

there() { docker image inspect "$1" >/dev/null 2>&1; }
on_base() {
  DOCKER_BUILDKIT=${DOCKER_BUILDKIT:-0} docker build --quiet --build-arg "BASE=$2" --tag "$1" \
    --file "$3" . >/dev/null
}

there gatehouse-base:local || ./base_image.sh gatehouse-base:local
there gatehouse-postgres-base:local || ./base_image.sh gatehouse-postgres-base:local postgresql
there gatehouse-haproxy-base:local || ./base_image.sh gatehouse-haproxy-base:local haproxy
there gatehouse-postgres:local \
  || on_base gatehouse-postgres:local gatehouse-postgres-base:local postgres.Dockerfile
there gatehouse-haproxy:local \
  || on_base gatehouse-haproxy:local gatehouse-haproxy-base:local haproxy.Dockerfile
echo "Use them:"
echo "  make image BASE=gatehouse-base:local"
echo "  export POSTGRES_IMAGE=gatehouse-postgres:local HAPROXY_IMAGE=gatehouse-haproxy:local"
