-- Counter-signatures of enclaves under the notices of grants, one for each grant: with them the
-- borrower's side cannot deny a grant, as with the notices the custodian cannot.
CREATE TABLE grant_seen (
    number INTEGER PRIMARY KEY REFERENCES grants,
    session TEXT NOT NULL REFERENCES sessions,
    payload BLOB NOT NULL,
    signature BLOB NOT NULL CHECK (length(signature) = 64),
    received_us INTEGER NOT NULL
);

CREATE TRIGGER grant_seen_is_never_changed BEFORE UPDATE ON grant_seen
BEGIN SELECT RAISE(ABORT, 'counter-signatures are append-only'); END;
CREATE TRIGGER grant_seen_is_never_deleted BEFORE DELETE ON grant_seen
BEGIN SELECT RAISE(ABORT, 'counter-signatures are append-only'); END;
