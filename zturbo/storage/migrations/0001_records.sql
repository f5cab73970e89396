CREATE TABLE keys (
    prefix TEXT PRIMARY KEY,
    digest BLOB NOT NULL,
    name TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    scopes TEXT NOT NULL,                -- separated by one space
    enabled INTEGER NOT NULL,
    expires_ms INTEGER,
    retention TEXT,
    threshold INTEGER CHECK (threshold >= 0),
    CHECK ((retention IS NULL) = (threshold IS NULL))
) WITHOUT ROWID;

CREATE TABLE generations (
    number INTEGER PRIMARY KEY,          -- the order in which rows were written
    request_id TEXT NOT NULL UNIQUE,
    inference_id TEXT NOT NULL,
    client_request_id TEXT,
    created_ms INTEGER NOT NULL,
    origin TEXT NOT NULL,
    key TEXT,                            -- no foreign key: a request outlives its key
    model TEXT,
    width INTEGER,
    height INTEGER,
    steps INTEGER,
    images INTEGER,
    status TEXT NOT NULL CHECK (status IN ('running', 'done', 'failed', 'cancelled', 'rejected')),
    held INTEGER NOT NULL CHECK (held >= 0),
    credits INTEGER NOT NULL DEFAULT 0 CHECK (credits >= 0),
    ended_ms INTEGER,
    error TEXT,
    seconds TEXT NOT NULL DEFAULT '{}',  -- JSON: stage -> seconds
    CHECK (credits = 0 OR status = 'done'),
    CHECK (held = 0 OR status = 'running')
);
CREATE INDEX generations_created ON generations (created_ms, number);
CREATE INDEX generations_key ON generations (key, created_ms, number);
CREATE INDEX generations_running ON generations (key, held) WHERE status = 'running';

CREATE TABLE pictures (
    name TEXT PRIMARY KEY,
    request_id TEXT NOT NULL REFERENCES generations (request_id),
    position INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX pictures_request ON pictures (request_id, position);

-- What each key was charged on each day: a limit is checked over at most 31 rows, not over all requests of a month.
CREATE TABLE charges (
    key TEXT NOT NULL,
    day INTEGER NOT NULL,                -- days since 1970
    credits INTEGER NOT NULL CHECK (credits >= 0),
    PRIMARY KEY (key, day)
) WITHOUT ROWID;

CREATE TABLE account (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    balance INTEGER CHECK (balance >= 0),
    low_threshold INTEGER NOT NULL CHECK (low_threshold >= 0),
    updated_ms INTEGER NOT NULL
);
INSERT INTO account (id, balance, low_threshold, updated_ms) VALUES (1, NULL, 0, 0);
