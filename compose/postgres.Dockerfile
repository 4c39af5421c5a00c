# PostgreSQL of Debian's packages, for machines that can pull no image: understands POSTGRES_USER,
# POSTGRES_DB and POSTGRES_PASSWORD_FILE as the official image does.
ARG BASE=gatehouse-postgres-base:local
FROM ${BASE}
COPY postgres-entrypoint.sh /usr/local/bin/postgres-entrypoint.sh
RUN mkdir -p /run/postgresql && chown -R postgres:postgres /run/postgresql /var/lib/postgresql
ENTRYPOINT ["/usr/local/bin/postgres-entrypoint.sh"]
STOPSIGNAL SIGINT
EXPOSE 5432
