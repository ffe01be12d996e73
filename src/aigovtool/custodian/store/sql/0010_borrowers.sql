-- The borrower's own tokens, and its own requests for more.

-- What lets a borrower read its loan and ask for more. A revoked one stays, and opens nothing.
CREATE TABLE borrower_tokens (
    borrower TEXT PRIMARY KEY,
    loan TEXT NOT NULL REFERENCES loans,
    note TEXT NOT NULL,
    token_sha256 BLOB NOT NULL UNIQUE CHECK (length(token_sha256) = 32),
    created_us INTEGER NOT NULL,
    revoked_us INTEGER
);

-- A request comes from a consumer by its session, or from the borrower by a token. No database
-- here can drop a NOT NULL in the same words, so the table is made anew.
CREATE TABLE requests_of_both (
    request TEXT PRIMARY KEY,
    loan TEXT NOT NULL REFERENCES loans,
    consumer TEXT REFERENCES consumers,
    session TEXT REFERENCES sessions,
    borrower TEXT REFERENCES borrower_tokens,
    credits INTEGER NOT NULL CHECK (credits >= 1),
    reason TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'approved', 'denied')),
    granted INTEGER NOT NULL CHECK (granted >= 0),
    decision_reason TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    decided_us INTEGER,
    CHECK ((state = 'open') = (decided_us IS NULL)),
    CHECK ((state = 'approved') = (granted > 0)),
    CHECK ((consumer IS NULL) = (session IS NULL)),
    CHECK ((consumer IS NULL) = (borrower IS NOT NULL))
);
INSERT INTO requests_of_both (request, loan, consumer, session, borrower, credits, reason, state,
    granted, decision_reason, created_us, decided_us)
SELECT request, loan, consumer, session, NULL, credits, reason, state, granted, decision_reason,
    created_us, decided_us FROM requests;
DROP TABLE requests;
ALTER TABLE requests_of_both RENAME TO requests;
CREATE UNIQUE INDEX requests_one_open ON requests (loan, consumer) WHERE state = 'open';
CREATE UNIQUE INDEX requests_one_open_of_borrower ON requests (loan)
    WHERE state = 'open' AND consumer IS NULL;
