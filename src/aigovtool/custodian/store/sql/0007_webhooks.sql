-- Who is told of events over HTTPS, and what is still to be told.

-- A webhook that was removed stays, as its deliveries do.
CREATE TABLE webhooks (
    webhook TEXT PRIMARY KEY,
    url TEXT NOT NULL,
    wrapped_secret BLOB NOT NULL,
    created_us INTEGER NOT NULL,
    removed_us INTEGER
);

CREATE TABLE webhook_kinds (
    webhook TEXT NOT NULL REFERENCES webhooks,
    kind TEXT NOT NULL,
    PRIMARY KEY (webhook, kind)
);
CREATE INDEX webhook_kinds_by_kind ON webhook_kinds (kind);

-- Written in the same transaction as the event. Of each webhook the first that waits goes first.
CREATE TABLE deliveries (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    webhook TEXT NOT NULL REFERENCES webhooks,
    message TEXT NOT NULL,
    kind TEXT NOT NULL,
    body BLOB NOT NULL,
    created_us INTEGER NOT NULL,
    due_us INTEGER NOT NULL,
    claimed_us INTEGER,
    tries INTEGER NOT NULL DEFAULT 0 CHECK (tries >= 0),
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'dead')),
    answer TEXT NOT NULL DEFAULT '',
    UNIQUE (webhook, message)
);
CREATE INDEX deliveries_waiting ON deliveries (webhook, number) WHERE state = 'waiting';

-- A loan whose credits left fall below `credits` is low, and that is said once until it is not.
CREATE TABLE low_marks (
    loan TEXT PRIMARY KEY REFERENCES loans,
    credits INTEGER NOT NULL CHECK (credits >= 1),
    low INTEGER NOT NULL CHECK (low IN (0, 1))
);
