-- The audit trail: a chain of records, each the SHA-256 of its own text and holding the hash of the one before it.
-- `revision` repeats what the text says, for looking up.
CREATE TABLE audit (
    seq      INTEGER PRIMARY KEY CHECK (seq > 0),
    revision INTEGER,
    record   TEXT    NOT NULL,
    hash     BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;

CREATE UNIQUE INDEX audit_revision ON audit (revision) WHERE revision IS NOT NULL;

-- Nothing changes a record by mistake. Against intent there is the chain.
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;
CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END;

-- Revisions above this one have a record; a database that is older than its audit trail has some that have none.
CREATE TABLE audit_base (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    revision INTEGER NOT NULL
) STRICT;

INSERT INTO audit_base (id, revision) SELECT 1, revision FROM counter;
