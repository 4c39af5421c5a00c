-- What the parts of the deployment report about themselves, until it expires.
CREATE TABLE gatehouse.services (
    kind INTEGER NOT NULL,
    endpoint TEXT COLLATE "C" NOT NULL,
    expires_at_us BIGINT NOT NULL,
    PRIMARY KEY (kind, endpoint)
);
