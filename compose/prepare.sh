#!/usr/bin/env bash
# Make what compose.yaml mounts, once: certificates, secrets, and .env with who may read them.
set -euo pipefail
cd "$(dirname "$0")"

owner=""
user=$(id -u):$(id -g)
# Files of root would be root's alone; the containers run as nobody's user.
[ "$(id -u)" = 0 ] && { user=65532:65532; owner=$user; }
../.venv/bin/gatehouse certs --out certs --domain gatehouse.localhost --secrets ${owner:+--owner "$owner"}

random() { head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
once() { [ -s "certs/$1" ] || (umask 077; printf '%s' "$2" >"certs/$1"); }
once postgres_password "$(random)"
once postgres_dsn "postgresql://gatehouse:$(cat certs/postgres_password)@postgres/gatehouse"
once idp_client_secret "$(random)"
[ -z "$owner" ] || chown "$owner" certs/postgres_password certs/postgres_dsn certs/idp_client_secret
printf 'GATEHOUSE_USER=%s\n' "$user" >.env
