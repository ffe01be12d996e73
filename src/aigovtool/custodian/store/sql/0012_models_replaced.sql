-- A loan's model can be replaced: a session keeps the one that it was given.
ALTER TABLE sessions ADD COLUMN model BLOB REFERENCES models;
UPDATE sessions SET model = (SELECT loans.model FROM loans WHERE loans.loan = sessions.loan);

-- When sessions with an older model are ended, NULL while it was never replaced.
ALTER TABLE loans ADD COLUMN retires_us INTEGER;
