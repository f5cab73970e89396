CREATE TABLE idempotency (
    owner TEXT NOT NULL,
    key TEXT NOT NULL,
    digest BLOB NOT NULL,
    expires_ms INTEGER NOT NULL,
    answer BLOB,                         -- NULL while the first request runs
    PRIMARY KEY (owner, key)
);
CREATE INDEX idempotency_expires ON idempotency (expires_ms);
