"""The statements of the PostgreSQL store. Times are Unix microseconds of the database's clock."""

# ruff: noqa: S608 - what is put together here are constants of this file

from __future__ import annotations

from typing import Final, LiteralString

CHANNEL: Final = "gatehouse_record_change"
# Advisory locks, in a number space that all users of a database share.
MIGRATION_LOCK: Final = 0x67617465686F7301  # "gatehos", 1
CLEANING_LOCK: Final = 0x67617465686F7302

NOW_US: Final[LiteralString] = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
COLUMNS: Final[LiteralString] = "version, type, id, data, modified_at_us"

SESSION: Final[LiteralString] = """
    SELECT set_config('statement_timeout', %s, false),
           set_config('idle_in_transaction_session_timeout', %s, false),
           set_config('lock_timeout', %s, false)"""

LOCAL_TIMEOUT: Final[LiteralString] = "SELECT set_config('statement_timeout', %s, true)"

# Schema

# Reads the catalogs themselves: to_regclass() may answer from a cache that is older than the lock.
SCHEMA_STATE: Final[LiteralString] = """
    SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = 'gatehouse'),
           EXISTS (
               SELECT FROM pg_catalog.pg_tables
               WHERE schemaname = 'gatehouse' AND tablename = 'schema_version'
           )"""
SCHEMA_LOCK: Final[LiteralString] = "SELECT pg_advisory_xact_lock(%s)"
SCHEMA_VERSION: Final[LiteralString] = (
    "SELECT coalesce(max(version), 0) FROM gatehouse.schema_version"
)
SCHEMA_TABLE: Final[LiteralString] = (
    "CREATE TABLE gatehouse.schema_version (version INTEGER NOT NULL)"
)
SCHEMA_STEP: Final[LiteralString] = "INSERT INTO gatehouse.schema_version (version) VALUES (%s)"
FIRST_HISTORY: Final[LiteralString] = """
    INSERT INTO gatehouse.sequencer (server_version, latest_version, pruned_version)
    VALUES (%s, 0, 0) ON CONFLICT DO NOTHING"""

# Positions

POSITION: Final[LiteralString] = (
    "SELECT server_version, latest_version, pruned_version FROM gatehouse.sequencer"
)
# Locks the one row until commit: who holds it is the only writer, so that versions become visible
# in the order in which they were given.
SEQUENCE: Final[LiteralString] = f"""
    SELECT server_version, latest_version, pruned_version, {NOW_US}
    FROM gatehouse.sequencer FOR UPDATE"""
ADVANCE: Final[LiteralString] = "UPDATE gatehouse.sequencer SET latest_version = %s"
NOTIFY: Final[LiteralString] = f"NOTIFY {CHANNEL}"
LISTEN: Final[LiteralString] = f"LISTEN {CHANNEL}"
RENEW_HISTORY: Final[LiteralString] = """
    UPDATE gatehouse.sequencer
    SET server_version = %s, latest_version = %s, pruned_version = %s
    WHERE server_version = %s AND latest_version < %s"""

# Records

HELD: Final[LiteralString] = f"""
    SELECT {COLUMNS} FROM unnest(%s::text[], %s::text[]) AS wanted (type, id)
    JOIN gatehouse.records USING (type, id)"""
ADD_CHANGES: Final[LiteralString] = f"""
    INSERT INTO gatehouse.record_changes ({COLUMNS}, deleted_at_us)
    SELECT * FROM unnest(
        %s::bigint[], %s::text[], %s::text[], %s::bytea[], %s::bigint[], %s::bigint[])"""
UPSERT: Final[LiteralString] = f"""
    INSERT INTO gatehouse.records ({COLUMNS})
    SELECT * FROM unnest(%s::bigint[], %s::text[], %s::text[], %s::bytea[], %s::bigint[])
    ON CONFLICT (type, id) DO UPDATE SET version = excluded.version, data = excluded.data,
        modified_at_us = excluded.modified_at_us"""
DELETE: Final[LiteralString] = """
    DELETE FROM gatehouse.records AS held USING unnest(%s::text[], %s::text[]) AS gone (type, id)
    WHERE held.type = gone.type AND held.id = gone.id"""
GET: Final[LiteralString] = f"SELECT {COLUMNS} FROM gatehouse.records WHERE type = %s AND id = %s"
OVER_CAPACITY: Final[LiteralString] = f"""
    SELECT * FROM (
        SELECT {COLUMNS} FROM gatehouse.records WHERE type = %s ORDER BY version DESC OFFSET %s
    ) AS over ORDER BY version LIMIT %s"""
EXPIRED: Final[LiteralString] = f"""
    SELECT {COLUMNS} FROM gatehouse.records
    WHERE type = %s AND modified_at_us < {NOW_US} - %s LIMIT %s"""
# Each type costs one index probe, whatever the number of its records.
TYPES: Final[LiteralString] = """
    WITH RECURSIVE types (type) AS (
        SELECT (SELECT min(type) FROM gatehouse.records)
        UNION ALL
        SELECT (SELECT min(type) FROM gatehouse.records WHERE records.type > types.type)
        FROM types WHERE types.type IS NOT NULL
    )
    SELECT type FROM types WHERE type IS NOT NULL ORDER BY type"""

# Pages end after the record that passes a number of bytes; `before` is what precedes a record.

CHANGES: Final[LiteralString] = f"""
    SELECT position.server_version, position.latest_version, position.pruned_version, page.*
    FROM gatehouse.sequencer AS position LEFT JOIN (
        SELECT {COLUMNS}, deleted_at_us FROM (
            SELECT *, sum(length(data)) OVER (ORDER BY version) - length(data) AS before FROM (
                SELECT * FROM gatehouse.record_changes
                WHERE version > %(after)s ORDER BY version LIMIT %(limit)s
            ) AS first_rows
        ) AS counted WHERE before < %(bytes)s
    ) AS page ON TRUE
    ORDER BY page.version"""
TYPED_CHANGES: Final[LiteralString] = CHANGES.replace(
    "WHERE version >", "WHERE type = %(type)s AND version >"
)
_HEAD: Final[LiteralString] = f"""
    SELECT {COLUMNS} FROM (
        SELECT *, sum(length(data)) OVER (ORDER BY type, id) - length(data) AS before FROM (
            SELECT {COLUMNS} FROM gatehouse.records
            WHERE (type, id) > (%(after_type)s, %(after_id)s) ORDER BY type, id LIMIT %(limit)s
        ) AS first_rows
    ) AS counted WHERE before < %(bytes)s ORDER BY type, id"""
HEAD: Final[LiteralString] = _HEAD
TYPED_HEAD: Final[LiteralString] = _HEAD.replace(
    "WHERE (type, id) > (%(after_type)s, %(after_id)s)",
    "WHERE type = %(type)s AND id > %(after_id)s",
)

# Queries

SNAPSHOT: Final[LiteralString] = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"
COUNT_TYPE: Final[LiteralString] = "SELECT count(*) FROM gatehouse.records WHERE type = %(type)s"
COUNT_ALL: Final[LiteralString] = "SELECT count(*) FROM gatehouse.records"
LIST_TYPE: Final[LiteralString] = f"""
    SELECT {COLUMNS} FROM gatehouse.records WHERE type = %(type)s
    ORDER BY type, id OFFSET %(offset)s LIMIT %(limit)s"""
LIST_ALL: Final[LiteralString] = f"""
    SELECT {COLUMNS} FROM gatehouse.records ORDER BY type, id OFFSET %(offset)s LIMIT %(limit)s"""
SCAN_TYPE: Final[LiteralString] = f"""
    SELECT {COLUMNS} FROM gatehouse.records WHERE type = %(type)s ORDER BY type, id"""
SCAN_ALL: Final[LiteralString] = f"SELECT {COLUMNS} FROM gatehouse.records ORDER BY type, id"
SELECT_BY_ID: Final[LiteralString] = f"""
    SELECT position.server_version, position.latest_version, position.pruned_version, found.*
    FROM gatehouse.sequencer AS position LEFT JOIN (
        SELECT {COLUMNS} FROM gatehouse.records
        WHERE type = %(type)s AND id = ANY(%(ids)s) ORDER BY type, id
    ) AS found ON TRUE
    ORDER BY found.type, found.id"""
SELECT_BY_TERM: Final[LiteralString] = f"""
    WITH wanted AS (
        SELECT type, id FROM unnest(%(types)s::text[]) AS type, unnest(%(ids)s::text[]) AS id
        UNION
        SELECT record_index.type, record_index.id
        FROM unnest(%(fields)s::text[], %(values)s::text[]) AS term (field, value)
        JOIN gatehouse.record_index
            ON record_index.field = term.field AND record_index.value = term.value
        WHERE record_index.type = ANY(%(types)s)
    )
    SELECT {COLUMNS} FROM wanted JOIN gatehouse.records USING (type, id) ORDER BY type, id"""

# Options and indexes

OPTIONS: Final[LiteralString] = """
    SELECT type, capacity, ttl_us, fields FROM gatehouse.record_options WHERE type = ANY(%s)"""
ALL_OPTIONS: Final[LiteralString] = (
    "SELECT type, capacity, ttl_us, fields FROM gatehouse.record_options"
)
DELETE_OPTIONS: Final[LiteralString] = "DELETE FROM gatehouse.record_options WHERE type = %s"
ADD_OPTIONS: Final[LiteralString] = """
    INSERT INTO gatehouse.record_options (type, capacity, ttl_us, fields)
    VALUES (%s, %s, %s, %s)"""
INDEXED: Final[LiteralString] = """
    SELECT type, fields FROM gatehouse.indexed_fields WHERE type = ANY(%s)"""
SET_INDEXED: Final[LiteralString] = """
    INSERT INTO gatehouse.indexed_fields (type, fields) VALUES (%s, %s)
    ON CONFLICT (type) DO UPDATE SET fields = excluded.fields"""
DELETE_TERMS: Final[LiteralString] = """
    DELETE FROM gatehouse.record_index AS held
    USING unnest(%s::text[], %s::text[], %s::text[], %s::text[]) AS gone (field, value, type, id)
    WHERE held.field = gone.field AND held.value = gone.value
        AND held.type = gone.type AND held.id = gone.id"""
ADD_TERMS: Final[LiteralString] = """
    INSERT INTO gatehouse.record_index (field, value, type, id)
    SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[])
    ON CONFLICT DO NOTHING"""

# Clearing

CLEAR: Final[tuple[LiteralString, ...]] = (
    "DELETE FROM gatehouse.records",
    "DELETE FROM gatehouse.record_changes",
    "DELETE FROM gatehouse.record_index",
    "DELETE FROM gatehouse.record_options",
    "DELETE FROM gatehouse.indexed_fields",
)
CLEAR_HISTORY: Final[LiteralString] = """
    UPDATE gatehouse.sequencer SET server_version = %s, pruned_version = latest_version,
        checkpoint_server_version = 0, checkpoint_record_version = 0"""

# Leases and checkpoint

LEASE_LOCK: Final[LiteralString] = (
    "SELECT pg_advisory_xact_lock(hashtextextended('lease:' || %s, 0))"
)
LEASE: Final[LiteralString] = f"""
    SELECT {NOW_US}, held.name, held.id, held.expires_at_us, held.fence
    FROM (SELECT 1) AS one LEFT JOIN gatehouse.leases AS held ON held.name = %s"""
SET_LEASE: Final[LiteralString] = """
    INSERT INTO gatehouse.leases (name, id, expires_at_us, fence) VALUES (%s, %s, %s, %s)
    ON CONFLICT (name) DO UPDATE SET id = excluded.id, expires_at_us = excluded.expires_at_us,
        fence = excluded.fence"""
CHECKPOINT: Final[LiteralString] = """
    SELECT checkpoint_server_version, checkpoint_record_version FROM gatehouse.sequencer"""
SET_CHECKPOINT: Final[LiteralString] = """
    UPDATE gatehouse.sequencer
    SET checkpoint_server_version = %s, checkpoint_record_version = %s"""

# Cleaning

PRUNE_LOCK: Final[LiteralString] = "SELECT pg_try_advisory_xact_lock(%s)"
PRUNE_LEASES: Final[LiteralString] = f"""
    DELETE FROM gatehouse.leases WHERE expires_at_us < {NOW_US} - %s"""
PRUNE_END: Final[LiteralString] = f"""
    SELECT least(
        (SELECT max(version) FROM gatehouse.record_changes WHERE modified_at_us < {NOW_US} - %s),
        latest_version - 1, pruned_version + %s)
    FROM gatehouse.sequencer
    WHERE EXISTS (SELECT FROM gatehouse.record_changes WHERE modified_at_us < {NOW_US} - %s)"""
PRUNE: Final[LiteralString] = "DELETE FROM gatehouse.record_changes WHERE version <= %s"
PRUNED: Final[LiteralString] = """
    UPDATE gatehouse.sequencer SET pruned_version = greatest(pruned_version, %s)"""
