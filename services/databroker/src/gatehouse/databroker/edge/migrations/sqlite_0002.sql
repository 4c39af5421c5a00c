-- When records were last used. Updated far more often than they are, hence a table of its own.
CREATE TABLE access_times (
    type TEXT NOT NULL,
    id TEXT NOT NULL,
    accessed_at_us INTEGER NOT NULL,
    PRIMARY KEY (type, id)
) WITHOUT ROWID;

-- Keys that payloads are encrypted with, each wrapped by a key made of the shared secret.
CREATE TABLE data_keys (
    id INTEGER PRIMARY KEY,
    created_at_us INTEGER NOT NULL,
    wrapped_by TEXT NOT NULL, -- which key, not what it is
    wrapped BLOB NOT NULL
);

-- Payloads in clear, of an older release. Empty once they are encrypted.
CREATE INDEX records_in_clear ON records (type, id) WHERE substr(data, 1, 1) <> x'00';
CREATE INDEX record_changes_in_clear ON record_changes (version)
    WHERE substr(data, 1, 1) <> x'00';

-- When the newest change was made: with its version it tells this log from another one.
ALTER TABLE sequencer ADD COLUMN latest_at_us INTEGER NOT NULL DEFAULT 0;
UPDATE sequencer SET latest_at_us = coalesce(
    (SELECT modified_at_us FROM record_changes WHERE version = latest_version), 0);

-- How many bytes have been written to the log, up to a change and in all.
ALTER TABLE record_changes ADD COLUMN end_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE sequencer ADD COLUMN log_bytes INTEGER NOT NULL DEFAULT 0;

-- Which opening of the file this is; also in a file beside it, so that a restored file shows.
ALTER TABLE sequencer ADD COLUMN epoch TEXT NOT NULL DEFAULT '';
