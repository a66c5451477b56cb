-- The log of all changes, and the objects that it adds up to. Kinds are the numbers of `object::Kind`, times are
-- milliseconds since the Unix epoch.

CREATE TABLE meta (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    epoch      TEXT    NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

-- The one place that revisions come from. `floor` is the newest revision that the log no longer holds.
CREATE TABLE counter (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    revision INTEGER NOT NULL CHECK (revision >= floor),
    floor    INTEGER NOT NULL CHECK (floor >= 0),
    at       INTEGER NOT NULL
) STRICT;

-- The latest revision that touched a kind, for units that depend on all objects of a kind.
CREATE TABLE kinds (
    kind     INTEGER PRIMARY KEY,
    revision INTEGER NOT NULL
) STRICT;

-- Live objects.
CREATE TABLE objects (
    kind     INTEGER NOT NULL,
    key      TEXT    NOT NULL,
    revision INTEGER NOT NULL,
    body     BLOB    NOT NULL,
    PRIMARY KEY (kind, key)
) STRICT;

-- Who changed what, and when: one row per revision, never trimmed.
CREATE TABLE commits (
    revision   INTEGER PRIMARY KEY,
    at         INTEGER NOT NULL,
    author     TEXT    NOT NULL,
    action     TEXT    NOT NULL,
    request_id TEXT    NOT NULL
) STRICT;

-- What each revision changed, above the floor. `body` is NULL for a delete; `prev_*` is the version that was replaced,
-- NULL for a create.
CREATE TABLE log (
    revision      INTEGER NOT NULL REFERENCES commits (revision),
    seq           INTEGER NOT NULL,
    kind          INTEGER NOT NULL,
    key           TEXT    NOT NULL,
    body          BLOB,
    prev_revision INTEGER,
    prev_body     BLOB,
    PRIMARY KEY (revision, seq),
    CHECK ((prev_revision IS NULL) = (prev_body IS NULL)),
    CHECK (body IS NOT NULL OR prev_body IS NOT NULL)
) STRICT;

-- Operators. Names are never reused: votes and log entries refer to them.
CREATE TABLE operators (
    name         TEXT PRIMARY KEY,
    token_sha256 BLOB    NOT NULL UNIQUE CHECK (length(token_sha256) = 32),
    created_at   INTEGER NOT NULL,
    created_by   TEXT    NOT NULL,
    revoked_at   INTEGER,
    revoked_by   TEXT
) STRICT;

INSERT INTO counter (id, revision, floor, at) VALUES (1, 0, 0, 0);
