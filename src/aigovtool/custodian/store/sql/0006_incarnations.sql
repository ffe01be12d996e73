-- What makes a ledger that was put back from a copy known as one.

-- The lives of this ledger, the first made with it. A reconciliation begins another, so that what
-- was signed in a life that was lost is known as such, and not taken for a newer ledger.
CREATE TABLE incarnations (
    number INTEGER PRIMARY KEY CHECK (number >= 1),
    incarnation BLOB NOT NULL UNIQUE CHECK (length(incarnation) = 16),
    began_us INTEGER NOT NULL
);

-- One row while nothing may be leased, released or granted; none when all is well.
CREATE TABLE hold (
    only_one INTEGER PRIMARY KEY CHECK (only_one = 1),
    code TEXT NOT NULL,
    reason TEXT NOT NULL,
    since_us INTEGER NOT NULL
);

-- Signed settlements that came while the ledger was held, with the custodian's own statement of
-- whose key signed them: the ledger may know neither session nor lease.
CREATE TABLE handed_in (
    lease TEXT PRIMARY KEY,
    session TEXT NOT NULL,
    loan TEXT NOT NULL REFERENCES loans,
    payload BLOB NOT NULL,
    signature BLOB NOT NULL,
    statement_payload BLOB NOT NULL,
    statement_signature BLOB NOT NULL,
    received_us INTEGER NOT NULL
);

-- When a reconciliation found the lease unsettled: a settlement of it gives nothing back since.
ALTER TABLE leases ADD COLUMN written_off_us INTEGER;
