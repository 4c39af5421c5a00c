-- The first schema. Texts are ordered by bytes (COLLATE "C"), as every backend does.
-- Times are Unix microseconds. `data` is a serialized google.protobuf.Any.

-- One row, locked by every writer until it has committed: versions become visible in order.
CREATE TABLE gatehouse.sequencer (
    only_row BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (only_row),
    server_version BIGINT NOT NULL,
    latest_version BIGINT NOT NULL,
    pruned_version BIGINT NOT NULL, -- changes up to this one may be gone
    checkpoint_server_version NUMERIC(20) NOT NULL DEFAULT 0,
    checkpoint_record_version NUMERIC(20) NOT NULL DEFAULT 0
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

CREATE TABLE gatehouse.records (
    type TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    data BYTEA NOT NULL,
    modified_at_us BIGINT NOT NULL,
    PRIMARY KEY (type, id)
);
CREATE INDEX records_by_version ON gatehouse.records (type, version);
CREATE INDEX records_by_time ON gatehouse.records (type, modified_at_us);

CREATE TABLE gatehouse.record_changes (
    version BIGINT PRIMARY KEY,
    type TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    data BYTEA NOT NULL,
    modified_at_us BIGINT NOT NULL,
    deleted_at_us BIGINT
);
CREATE INDEX record_changes_by_type ON gatehouse.record_changes (type, version);
CREATE INDEX record_changes_by_time ON gatehouse.record_changes (modified_at_us);

-- Terms of indexed fields, and of "$index" the CIDR of a record.
CREATE TABLE gatehouse.record_index (
    field TEXT COLLATE "C" NOT NULL,
    value TEXT COLLATE "C" NOT NULL,
    type TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (field, value, type, id)
);

-- Which fields of a type are in record_index now.
CREATE TABLE gatehouse.indexed_fields (
    type TEXT COLLATE "C" PRIMARY KEY,
    fields TEXT[] NOT NULL
);

-- Options that a client has set.
CREATE TABLE gatehouse.record_options (
    type TEXT COLLATE "C" PRIMARY KEY,
    capacity BIGINT,
    ttl_us BIGINT,
    fields TEXT[] NOT NULL
);

CREATE TABLE gatehouse.leases (
    name TEXT COLLATE "C" PRIMARY KEY,
    id TEXT NOT NULL,
    expires_at_us BIGINT NOT NULL,
    fence BIGINT NOT NULL
);
CREATE INDEX leases_by_expiry ON gatehouse.leases (expires_at_us);
