-- Several processes on one ledger: who they are, who holds which session, and what they share.

-- Processes that belong together now. A number is never used again; beat rises while one lives.
CREATE TABLE replicas (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    joined_us INTEGER NOT NULL,
    beat INTEGER NOT NULL CHECK (beat >= 0)
);

-- Which of them holds the session's control connection; NULL when none does, or there is only one
-- process and it has no number.
ALTER TABLE sessions ADD COLUMN replica INTEGER CHECK (replica IS NULL OR disconnected_us IS NULL);

-- Nonces that are out for enrolment: the steps of one may come to different processes.
CREATE TABLE challenges (
    nonce BLOB PRIMARY KEY CHECK (length(nonce) = 32),
    loan TEXT NOT NULL REFERENCES loans,
    expires_us INTEGER NOT NULL
);
CREATE INDEX challenges_of_loan ON challenges (loan, expires_us);
