#!/bin/bash
# Make the database on the first start, then run the server in the place of this script.
set -euo pipefail
bin=$(echo /usr/lib/postgresql/*/bin)
data=/var/lib/postgresql/data

if [ "$(id -u)" = 0 ]; then
  install -d -o postgres -g postgres -m 700 "$data" /run/postgresql
  # The secret's file is readable by root alone.
  install -o postgres -m 600 "$POSTGRES_PASSWORD_FILE" /run/postgresql/password
  export POSTGRES_PASSWORD_FILE=/run/postgresql/password
  exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi

if [ ! -s "$data/PG_VERSION" ]; then
  "$bin/initdb" --pgdata "$data" --username "$POSTGRES_USER" --auth-host scram-sha-256 \
    --auth-local trust --encoding UTF8 --locale C.UTF-8 --pwfile "$POSTGRES_PASSWORD_FILE" >/dev/null
  echo "host all all all scram-sha-256" >>"$data/pg_hba.conf"
  "$bin/pg_ctl" --pgdata "$data" --options "-c listen_addresses=" --wait --silent start
  "$bin/createdb" --username "$POSTGRES_USER" "$POSTGRES_DB"
  "$bin/pg_ctl" --pgdata "$data" --mode fast --wait --silent stop
fi
exec "$bin/postgres" -D "$data" -c listen_addresses='*' "$@"
