-- The transparency log of the ledger. What is published is made from these rows alone; the files
-- are a copy that anybody may serve.

-- The log's key, and the tree as it was last signed. A tree only grows.
CREATE TABLE log_head (
    only_one INTEGER PRIMARY KEY CHECK (only_one = 1),
    origin TEXT NOT NULL,
    public_key BLOB NOT NULL CHECK (length(public_key) = 32),
    wrapped_key BLOB NOT NULL,
    certificate BLOB NOT NULL,
    size INTEGER NOT NULL CHECK (size >= 0),
    edge BLOB NOT NULL,
    checkpoint BLOB NOT NULL
);

-- Its entries, as they are published. One without an event came back from the published log after
-- the ledger was restored from an older copy.
CREATE TABLE log_entries (
    leaf INTEGER PRIMARY KEY CHECK (leaf >= 0),
    event INTEGER UNIQUE,
    salt BLOB CHECK (length(salt) = 32),
    entry BLOB NOT NULL,
    CHECK ((event IS NULL) = (salt IS NULL))
);

CREATE TRIGGER log_entries_are_never_changed BEFORE UPDATE ON log_entries
BEGIN SELECT RAISE(ABORT, 'log entries are append-only'); END;
CREATE TRIGGER log_entries_are_never_deleted BEFORE DELETE ON log_entries
BEGIN SELECT RAISE(ABORT, 'log entries are append-only'); END;
CREATE TRIGGER the_log_never_shrinks BEFORE UPDATE ON log_head WHEN NEW.size < OLD.size
BEGIN SELECT RAISE(ABORT, 'a log only grows'); END;
