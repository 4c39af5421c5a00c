-- The first schema; the tables of the PostgreSQL one. Texts are ordered by bytes (BINARY).
-- Times are Unix microseconds. `data` is a serialized google.protobuf.Any.

CREATE TABLE sequencer (
    only_row INTEGER PRIMARY KEY DEFAULT 1 CHECK (only_row = 1),
    server_version INTEGER NOT NULL,
    latest_version INTEGER NOT NULL,
    pruned_version INTEGER NOT NULL, -- changes up to this one may be gone
    checkpoint_server_version TEXT NOT NULL DEFAULT '0', -- uint64, more than INTEGER holds
    checkpoint_record_version TEXT NOT NULL DEFAULT '0'
);

CREATE TABLE records (
    type TEXT NOT NULL,
    id TEXT NOT NULL,
    version INTEGER NOT NULL,
    data BLOB NOT NULL,
    modified_at_us INTEGER NOT NULL,
    PRIMARY KEY (type, id)
);
CREATE INDEX records_by_version ON records (type, version);
CREATE INDEX records_by_time ON records (type, modified_at_us);

CREATE TABLE record_changes (
    version INTEGER PRIMARY KEY,
    type TEXT NOT NULL,
    id TEXT NOT NULL,
    data BLOB NOT NULL,
    modified_at_us INTEGER NOT NULL,
    deleted_at_us INTEGER
);
CREATE INDEX record_changes_by_type ON record_changes (type, version);
CREATE INDEX record_changes_by_time ON record_changes (modified_at_us);

-- Terms of indexed fields, and of "$index" the CIDR of a record.
CREATE TABLE record_index (
    field TEXT NOT NULL,
    value TEXT NOT NULL,
    type TEXT NOT NULL,
    id TEXT NOT NULL,
    PRIMARY KEY (field, value, type, id)
) WITHOUT ROWID;

-- Which fields of a type are in record_index now; a JSON list.
CREATE TABLE indexed_fields (
    type TEXT PRIMARY KEY,
    fields TEXT NOT NULL
) WITHOUT ROWID;

-- Options that a client has set; `fields` is a JSON list.
CREATE TABLE record_options (
    type TEXT PRIMARY KEY,
    capacity INTEGER,
    ttl_us INTEGER,
    fields TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE leases (
    name TEXT PRIMARY KEY,
    id TEXT NOT NULL,
    expires_at_us INTEGER NOT NULL,
    fence INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX leases_by_expiry ON leases (expires_at_us);
