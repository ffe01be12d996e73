-- Who waits at the enclaves for what a request asks, as each of them last said: what changes with
-- every query belongs into no event, and what an ended session said counts no more.
CREATE TABLE waiting (
    request TEXT NOT NULL REFERENCES requests,
    session TEXT NOT NULL REFERENCES sessions,
    queries INTEGER NOT NULL CHECK (queries >= 1),
    since_us INTEGER NOT NULL,
    PRIMARY KEY (request, session)
);
