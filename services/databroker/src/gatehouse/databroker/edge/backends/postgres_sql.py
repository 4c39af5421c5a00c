"""The statements of the PostgreSQL store. Times are Unix microseconds of the database's clock."""

# ruff: noqa: S608 - what is put together here are constants of this file

from __future__ import annotations

from typing import Final, LiteralString

CHANNEL: Final = "gatehouse_record_change"
# Advisory locks, in a number space that all users of a database share.
MIGRATION_LOCK: Final = 0x67617465686F7301  # "gatehos", 1
CLEANING_LOCK: Final = 0x67617465686F7302
KEYS_LOCK: Final = 0x67617465686F7303

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
ADVISORY_LOCK: Final[LiteralString] = "SELECT pg_advisory_xact_lock(%s)"
SCHEMA_VERSION: Final[LiteralString] = (
    "SELECT coalesce(max(version), 0) FROM gatehouse.schema_version"
)
SCHEMA_TABLE: Final[LiteralString] = (
    "CREATE TABLE gatehouse.schema_version (version INTEGER NOT NULL)"
)
SCHEMA_STEP: Final[LiteralString] = "INSERT INTO gatehouse.schema_version (version) VALUES (%s)"
HOLDS_CLEAR: Final[LiteralString] = r"""
    SELECT EXISTS (
        SELECT FROM (
            SELECT data FROM gatehouse.records UNION ALL SELECT data FROM gatehouse.record_changes
        ) AS stored WHERE substring(data FROM 1 FOR 1) <> '\x00'::bytea
    )"""
FIRST_HISTORY: Final[LiteralString] = """
    INSERT INTO gatehouse.sequencer (server_version, latest_version, pruned_version)
    VALUES (%s, 0, 0) ON CONFLICT DO NOTHING"""

# Positions

POSITION: Final[LiteralString] = """
    SELECT server_version, latest_version, pruned_version, latest_at_us FROM gatehouse.sequencer"""
# Locks the one row until commit: who holds it is the only writer, so that versions become visible
# in the order in which they were given.
SEQUENCE: Final[LiteralString] = f"""
    SELECT server_version, latest_version, log_bytes, {NOW_US}
    FROM gatehouse.sequencer FOR UPDATE"""
ADVANCE: Final[LiteralString] = """
    UPDATE gatehouse.sequencer SET latest_version = %s, latest_at_us = %s, log_bytes = %s"""
NOTIFY: Final[LiteralString] = f"NOTIFY {CHANNEL}"
LISTEN: Final[LiteralString] = f"LISTEN {CHANNEL}"
RENEW_HISTORY: Final[LiteralString] = """
    UPDATE gatehouse.sequencer
    SET server_version = %(new)s, latest_version = greatest(latest_version, %(latest)s),
        pruned_version = greatest(latest_version, %(latest)s), latest_at_us = 0
    WHERE server_version = %(old)s AND (
        latest_version < %(latest)s
        OR %(stamp)s <> 0 AND EXISTS (
            SELECT FROM gatehouse.record_changes
            WHERE version = %(latest)s AND modified_at_us <> %(stamp)s
        )
    )"""
# Which database this is: another cluster, a copy within one, or one that was wound back. Not all
# of it may be visible.
ORIGIN: Final[LiteralString] = """
    SELECT system_identifier || '/' || pg_database.oid || '/' || timeline_id
    FROM pg_control_system(), pg_control_checkpoint(), pg_database
    WHERE datname = current_database()"""
HELD_ORIGIN: Final[LiteralString] = "SELECT origin FROM gatehouse.sequencer"
SET_ORIGIN: Final[LiteralString] = """
    UPDATE gatehouse.sequencer SET origin = %(origin)s,
        server_version = CASE origin WHEN '' THEN server_version ELSE %(new)s END,
        pruned_version = CASE origin WHEN '' THEN pruned_version ELSE latest_version END
    WHERE origin = %(held)s"""

# Keys

DATA_KEYS: Final[LiteralString] = (
    "SELECT id, created_at_us, wrapped_by, wrapped FROM gatehouse.data_keys"
)
PUT_DATA_KEY: Final[LiteralString] = """
    INSERT INTO gatehouse.data_keys (id, created_at_us, wrapped_by, wrapped)
    VALUES (%s, %s, %s, %s)
    ON CONFLICT (id) DO UPDATE SET wrapped_by = excluded.wrapped_by, wrapped = excluded.wrapped"""
# Records

HELD: Final[LiteralString] = f"""
    SELECT {COLUMNS} FROM unnest(%s::text[], %s::text[]) AS wanted (type, id)
    JOIN gatehouse.records USING (type, id)"""
# Into the log, and of each record its last change into the head. Payloads are sent once, and in
# binary: as text a list of them takes far longer to write than to store.
ADD_CHANGES: Final[LiteralString] = f"""
    WITH given AS MATERIALIZED (
        SELECT * FROM unnest(
            %s::bigint[], %b::text[], %b::text[], %b::bytea[], %s::bigint[], %s::bigint[],
            %s::bigint[], %s::boolean[]
        ) AS given ({COLUMNS}, deleted_at_us, end_bytes, is_head)
    ), logged AS (
        INSERT INTO gatehouse.record_changes ({COLUMNS}, deleted_at_us, end_bytes)
        SELECT {COLUMNS}, deleted_at_us, end_bytes FROM given
    )
    INSERT INTO gatehouse.records ({COLUMNS}) SELECT {COLUMNS} FROM given WHERE is_head
    ON CONFLICT (type, id) DO UPDATE SET version = excluded.version, data = excluded.data,
        modified_at_us = excluded.modified_at_us"""
TOUCH: Final[LiteralString] = """
    UPDATE gatehouse.records AS held SET modified_at_us = touched.modified_at_us
    FROM unnest(%s::text[], %s::text[], %s::bigint[]) AS touched (type, id, modified_at_us)
    WHERE held.type = touched.type AND held.id = touched.id"""
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
    SELECT position.server_version, position.latest_version, position.pruned_version,
        position.latest_at_us,
        (SELECT modified_at_us FROM gatehouse.record_changes WHERE version = %(after)s), page.*
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
    SELECT position.server_version, position.latest_version, position.pruned_version,
        position.latest_at_us, found.*
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
    USING unnest(%b::text[], %b::text[], %b::text[], %b::text[]) AS gone (field, value, type, id)
    WHERE held.field = gone.field AND held.value = gone.value
        AND held.type = gone.type AND held.id = gone.id"""
ADD_TERMS: Final[LiteralString] = """
    INSERT INTO gatehouse.record_index (field, value, type, id)
    SELECT * FROM unnest(%b::text[], %b::text[], %b::text[], %b::text[])
    ON CONFLICT DO NOTHING"""

# Clearing

CLEAR: Final[tuple[LiteralString, ...]] = (
    "DELETE FROM gatehouse.records",
    "DELETE FROM gatehouse.record_changes",
    "DELETE FROM gatehouse.record_index",
    "DELETE FROM gatehouse.record_options",
    "DELETE FROM gatehouse.indexed_fields",
    "DELETE FROM gatehouse.access_times",
)
CLEAR_HISTORY: Final[LiteralString] = """
    UPDATE gatehouse.sequencer SET server_version = %s, pruned_version = latest_version,
        latest_at_us = 0, checkpoint_server_version = 0, checkpoint_record_version = 0"""

CHANGE_HISTORY: Final[LiteralString] = """
    UPDATE gatehouse.sequencer
    SET server_version = %s, pruned_version = latest_version, latest_at_us = 0"""

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

# Services

REGISTER: Final[LiteralString] = f"""
    INSERT INTO gatehouse.services (kind, endpoint, expires_at_us)
    SELECT given.kind, given.endpoint, {NOW_US} + %s
    FROM unnest(%s::integer[], %s::text[]) AS given (kind, endpoint)
    ORDER BY given.kind, given.endpoint COLLATE "C"
    ON CONFLICT (kind, endpoint) DO UPDATE SET expires_at_us = excluded.expires_at_us"""
REGISTERED: Final[LiteralString] = f"""
    SELECT kind, endpoint FROM gatehouse.services WHERE expires_at_us > {NOW_US}
    ORDER BY kind, endpoint"""

# Access times

PUT_ACCESS_TIMES: Final[LiteralString] = """
    INSERT INTO gatehouse.access_times AS held (type, id, accessed_at_us)
    SELECT given.type, given.id, given.accessed_at_us
    FROM unnest(%s::text[], %s::text[], %s::bigint[]) AS given (type, id, accessed_at_us)
    WHERE EXISTS (
        SELECT FROM gatehouse.records
        WHERE records.type = given.type AND records.id = given.id
    )
    ORDER BY given.type COLLATE "C", given.id COLLATE "C"
    ON CONFLICT (type, id) DO UPDATE SET accessed_at_us = excluded.accessed_at_us
        WHERE held.accessed_at_us < excluded.accessed_at_us"""
ACCESS_TIMES: Final[LiteralString] = """
    SELECT id, accessed_at_us FROM gatehouse.access_times JOIN gatehouse.records USING (type, id)
    WHERE type = %s AND id = ANY(%s::text[])"""
# Never waits: a row that is being updated just now is left to the cleaner.
DELETE_ACCESS_TIMES: Final[LiteralString] = """
    DELETE FROM gatehouse.access_times WHERE ctid = ANY(ARRAY(
        SELECT held.ctid FROM gatehouse.access_times AS held
        JOIN unnest(%s::text[], %s::text[]) AS gone (type, id)
            ON held.type = gone.type AND held.id = gone.id
        FOR UPDATE OF held SKIP LOCKED
    ))"""

# Cleaning

PRUNE_LOCK: Final[LiteralString] = "SELECT pg_try_advisory_xact_lock(%s)"
PRUNE_LEASES: Final[LiteralString] = f"""
    DELETE FROM gatehouse.leases WHERE expires_at_us < {NOW_US} - %s"""
PRUNE_SERVICES: Final[LiteralString] = f"""
    DELETE FROM gatehouse.services WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM gatehouse.services
        WHERE expires_at_us < {NOW_US} FOR UPDATE SKIP LOCKED
    ))"""
PRUNE_ACCESS_TIMES: Final[LiteralString] = """
    DELETE FROM gatehouse.access_times WHERE ctid = ANY(ARRAY(
        SELECT held.ctid FROM gatehouse.access_times AS held
        WHERE NOT EXISTS (
            SELECT FROM gatehouse.records
            WHERE records.type = held.type AND records.id = held.id
        )
        LIMIT %s FOR UPDATE OF held SKIP LOCKED
    ))"""
# Looks at the oldest changes alone, however long the log is.
PRUNE_END: Final[LiteralString] = f"""
    SELECT least(old.version, latest_version - 1) FROM gatehouse.sequencer, LATERAL (
        SELECT max(version) AS version FROM (
            SELECT version, modified_at_us, end_bytes FROM gatehouse.record_changes
            ORDER BY version LIMIT %s
        ) AS oldest
        WHERE modified_at_us < {NOW_US} - %s OR end_bytes <= log_bytes - %s
    ) AS old
    WHERE old.version IS NOT NULL"""
PRUNE: Final[LiteralString] = "DELETE FROM gatehouse.record_changes WHERE version <= %s"
PRUNED: Final[LiteralString] = """
    UPDATE gatehouse.sequencer SET pruned_version = greatest(pruned_version, %s)"""
