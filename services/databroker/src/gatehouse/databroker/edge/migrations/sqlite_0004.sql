-- What the parts of the deployment report about themselves, until it expires.
CREATE TABLE services (
    kind INTEGER NOT NULL,
    endpoint TEXT NOT NULL,
    expires_at_us INTEGER NOT NULL,
    PRIMARY KEY (kind, endpoint)
) WITHOUT ROWID;
