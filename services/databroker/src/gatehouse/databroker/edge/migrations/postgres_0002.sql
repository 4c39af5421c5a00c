-- When records were last used. Updated far more often than they are, hence a table of its own with
-- room in its pages for updates in place.
CREATE TABLE gatehouse.access_times (
    type TEXT COLLATE "C" NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    accessed_at_us BIGINT NOT NULL,
    PRIMARY KEY (type, id)
) WITH (fillfactor = 50);

-- Keys that payloads are encrypted with, each wrapped by a key made of the shared secret.
CREATE TABLE gatehouse.data_keys (
    id BIGINT PRIMARY KEY,
    created_at_us BIGINT NOT NULL,
    wrapped_by TEXT NOT NULL, -- which key, not what it is
    wrapped BYTEA NOT NULL
);

-- Payloads in clear, of an older release. Empty once they are encrypted.
CREATE INDEX records_in_clear ON gatehouse.records (type, id)
    WHERE substring(data FROM 1 FOR 1) <> '\x00'::bytea;
CREATE INDEX record_changes_in_clear ON gatehouse.record_changes (version)
    WHERE substring(data FROM 1 FOR 1) <> '\x00'::bytea;

-- When the newest change was made: with its version it tells this log from another one.
ALTER TABLE gatehouse.sequencer ADD COLUMN latest_at_us BIGINT NOT NULL DEFAULT 0;
UPDATE gatehouse.sequencer SET latest_at_us = coalesce(
    (SELECT modified_at_us FROM gatehouse.record_changes WHERE version = latest_version), 0);

-- How many bytes have been written to the log, up to a change and in all.
ALTER TABLE gatehouse.record_changes ADD COLUMN end_bytes BIGINT NOT NULL DEFAULT 0;
ALTER TABLE gatehouse.sequencer ADD COLUMN log_bytes BIGINT NOT NULL DEFAULT 0;

-- Where this store lives; another place means that it was restored or copied.
ALTER TABLE gatehouse.sequencer ADD COLUMN origin TEXT NOT NULL DEFAULT '';
