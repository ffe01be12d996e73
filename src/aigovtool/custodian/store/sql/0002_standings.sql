-- How a session's platform stands since its last accepted evidence, and the loan's term for more.

-- After this long a session must attest again; 0 for never.
ALTER TABLE loans ADD COLUMN reattest_interval_us INTEGER NOT NULL DEFAULT 3600000000
    CHECK (reattest_interval_us >= 0);

-- One row for each session. grace is JSON, NULL when the platform is in order. While evidence is
-- awaited there are the nonce it must commit to, and since when.
CREATE TABLE standings (
    session TEXT PRIMARY KEY REFERENCES sessions,
    appraised_us INTEGER NOT NULL,
    tcb_status TEXT,
    grace BLOB,
    step TEXT NOT NULL
        CHECK (step IN ('full', 'warned', 'halved', 'quartered', 'eighth', 'refused')),
    nonce BLOB UNIQUE CHECK (length(nonce) = 32),
    asked_us INTEGER,
    overdue INTEGER NOT NULL CHECK (overdue IN (0, 1)),
    CHECK ((nonce IS NULL) = (asked_us IS NULL)),
    CHECK ((step = 'full') = (grace IS NULL))
);

-- Sessions that were opened before stand as they did then.
INSERT INTO standings (session, appraised_us, step, overdue)
SELECT session, opened_us, 'full', 0 FROM sessions;
