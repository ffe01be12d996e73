-- What was judged, kept as it came, so that anybody can judge it again years later.

-- Documents by their digest: what many appraisals share, such as endorsements, is here once.
CREATE TABLE documents (
    sha256 BLOB PRIMARY KEY CHECK (length(sha256) = 32),
    body BLOB NOT NULL
);

-- Evidence that was accepted, at enrolment and since, for the session's own keys and this nonce.
CREATE TABLE appraisals (
    session TEXT NOT NULL REFERENCES sessions,
    nonce BLOB NOT NULL CHECK (length(nonce) = 32),
    judged_us INTEGER NOT NULL,
    tee TEXT NOT NULL,
    policy BLOB NOT NULL REFERENCES documents,
    PRIMARY KEY (session, nonce)
);

-- Its documents, by name.
CREATE TABLE appraisal_documents (
    session TEXT NOT NULL,
    nonce BLOB NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('evidence', 'endorsements')),
    name TEXT NOT NULL,
    sha256 BLOB NOT NULL REFERENCES documents,
    PRIMARY KEY (session, nonce, role, name),
    FOREIGN KEY (session, nonce) REFERENCES appraisals
);

CREATE TRIGGER documents_are_never_changed BEFORE UPDATE ON documents
BEGIN SELECT RAISE(ABORT, 'documents are append-only'); END;
CREATE TRIGGER documents_are_never_deleted BEFORE DELETE ON documents
BEGIN SELECT RAISE(ABORT, 'documents are append-only'); END;
CREATE TRIGGER appraisals_are_never_changed BEFORE UPDATE ON appraisals
BEGIN SELECT RAISE(ABORT, 'appraisals are append-only'); END;
CREATE TRIGGER appraisals_are_never_deleted BEFORE DELETE ON appraisals
BEGIN SELECT RAISE(ABORT, 'appraisals are append-only'); END;
CREATE TRIGGER appraisal_documents_are_never_changed BEFORE UPDATE ON appraisal_documents
BEGIN SELECT RAISE(ABORT, 'appraisals are append-only'); END;
CREATE TRIGGER appraisal_documents_are_never_deleted BEFORE DELETE ON appraisal_documents
BEGIN SELECT RAISE(ABORT, 'appraisals are append-only'); END;
