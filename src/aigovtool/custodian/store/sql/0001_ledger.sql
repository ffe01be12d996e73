-- The ledger. Invariants are constraints: a program that is wrong is refused here.
-- Times (_us) are whole microseconds since 1970 UTC, durations (_us) whole microseconds.

-- Who this custodian is; one row, made by `custodian init` and never again.
CREATE TABLE custodian (
    only_one INTEGER PRIMARY KEY CHECK (only_one = 1),
    public_key BLOB NOT NULL CHECK (length(public_key) = 32),
    wrapped_signing_key BLOB NOT NULL,
    certificate_pem BLOB NOT NULL,
    created_us INTEGER NOT NULL
);

-- Sealed models by their digest. The sealed body is a file beside the database.
CREATE TABLE models (
    digest BLOB PRIMARY KEY CHECK (length(digest) = 32),
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    manifest BLOB NOT NULL,
    wrapped_key BLOB NOT NULL,
    body_bytes INTEGER NOT NULL CHECK (body_bytes > 0),
    body_sha256 BLOB NOT NULL CHECK (length(body_sha256) = 32),
    source_sha256 BLOB NOT NULL CHECK (length(source_sha256) = 32),
    created_us INTEGER NOT NULL,
    UNIQUE (name, version)
);

-- Loans, each with its account and the text of its appraisal policy.
CREATE TABLE loans (
    loan TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    model BLOB NOT NULL REFERENCES models,
    state TEXT NOT NULL CHECK (state IN ('active', 'stopped', 'expired', 'closed')),
    state_reason TEXT NOT NULL,
    policy TEXT NOT NULL,
    token_sha256 BLOB NOT NULL UNIQUE CHECK (length(token_sha256) = 32),
    max_enclaves INTEGER NOT NULL CHECK (max_enclaves >= 1),
    max_lease_credits INTEGER NOT NULL CHECK (max_lease_credits >= 1),
    lease_duration_us INTEGER NOT NULL CHECK (lease_duration_us >= 0),
    settle_grace_us INTEGER NOT NULL CHECK (settle_grace_us >= 0),
    wipe_after_us INTEGER NOT NULL CHECK (wipe_after_us > 0),
    expires_us INTEGER,
    granted INTEGER NOT NULL CHECK (granted >= 0),
    remaining INTEGER NOT NULL CHECK (remaining >= 0),
    leased INTEGER NOT NULL CHECK (leased >= 0),
    spent INTEGER NOT NULL CHECK (spent >= 0),
    forfeited INTEGER NOT NULL CHECK (forfeited >= 0),
    created_us INTEGER NOT NULL,
    CHECK (granted = remaining + leased + spent + forfeited)
);

-- Consumers of a loan. One without a budget of its own has an account of zeros.
CREATE TABLE consumers (
    consumer TEXT PRIMARY KEY,
    loan TEXT NOT NULL REFERENCES loans,
    name TEXT NOT NULL,
    key_sha256 BLOB NOT NULL UNIQUE CHECK (length(key_sha256) = 32),
    blocked INTEGER NOT NULL CHECK (blocked IN (0, 1)),
    blocked_reason TEXT NOT NULL,
    budgeted INTEGER NOT NULL CHECK (budgeted IN (0, 1)),
    granted INTEGER NOT NULL CHECK (granted >= 0),
    remaining INTEGER NOT NULL CHECK (remaining >= 0),
    leased INTEGER NOT NULL CHECK (leased >= 0),
    spent INTEGER NOT NULL CHECK (spent >= 0),
    forfeited INTEGER NOT NULL CHECK (forfeited >= 0),
    used INTEGER NOT NULL CHECK (used >= 0),
    created_us INTEGER NOT NULL,
    UNIQUE (loan, name),
    CHECK (granted = remaining + leased + spent + forfeited),
    CHECK (budgeted = 1 OR granted = 0),
    CHECK (budgeted = 0 OR used = spent)
);

-- Attested runs of enclaves. report_sha256 and decision belong to the report last_report.
CREATE TABLE sessions (
    session TEXT PRIMARY KEY,
    loan TEXT NOT NULL REFERENCES loans,
    state TEXT NOT NULL CHECK (state IN ('live', 'lapsed', 'ended')),
    tls_spki_sha256 BLOB NOT NULL CHECK (length(tls_spki_sha256) = 32),
    signing_key BLOB NOT NULL CHECK (length(signing_key) = 32),
    hpke_key BLOB NOT NULL,
    tee TEXT NOT NULL,
    measurement TEXT NOT NULL,
    software TEXT NOT NULL,
    opened_us INTEGER NOT NULL,
    disconnected_us INTEGER,
    ended_us INTEGER,
    end_reason TEXT NOT NULL,
    last_report INTEGER NOT NULL CHECK (last_report >= 0),
    report_sha256 BLOB NOT NULL,
    decision BLOB NOT NULL,
    CHECK ((state = 'ended') = (ended_us IS NOT NULL))
);
CREATE INDEX sessions_of_loan ON sessions (loan, state);

-- Leases. A report number of a session is leased to at most once.
CREATE TABLE leases (
    lease TEXT PRIMARY KEY,
    session TEXT NOT NULL REFERENCES sessions,
    loan TEXT NOT NULL REFERENCES loans,
    number INTEGER NOT NULL CHECK (number >= 1),
    credits INTEGER NOT NULL CHECK (credits >= 1),
    duration_us INTEGER NOT NULL CHECK (duration_us >= 0),
    granted_us INTEGER NOT NULL,
    expires_us INTEGER NOT NULL CHECK (expires_us >= granted_us),
    state TEXT NOT NULL CHECK (state IN ('open', 'settled', 'forfeited')),
    used INTEGER CHECK (used BETWEEN 0 AND credits),
    forfeited_us INTEGER,
    refunded_us INTEGER,
    UNIQUE (session, number),
    CHECK ((state = 'settled') = (used IS NOT NULL)),
    CHECK (state <> 'forfeited' OR forfeited_us IS NOT NULL),
    CHECK (refunded_us IS NULL OR forfeited_us IS NOT NULL)
);
CREATE INDEX leases_open_of_session ON leases (session) WHERE state = 'open';
CREATE INDEX leases_open_of_loan ON leases (loan, expires_us) WHERE state = 'open';

-- What a lease reserves from consumers' own budgets.
CREATE TABLE lease_caps (
    lease TEXT NOT NULL REFERENCES leases,
    consumer TEXT NOT NULL REFERENCES consumers,
    credits INTEGER NOT NULL CHECK (credits >= 1),
    PRIMARY KEY (lease, consumer)
);

-- Signed settlements, as they came; one for each lease, for ever.
CREATE TABLE settlements (
    lease TEXT PRIMARY KEY REFERENCES leases,
    used INTEGER NOT NULL CHECK (used >= 0),
    receipts INTEGER NOT NULL CHECK (receipts >= 0),
    receipt_chain BLOB NOT NULL CHECK (length(receipt_chain) = 32),
    payload BLOB NOT NULL,
    signature BLOB NOT NULL,
    received_us INTEGER NOT NULL
);

-- Whose use a settlement reports.
CREATE TABLE settlement_uses (
    lease TEXT NOT NULL REFERENCES settlements,
    consumer TEXT NOT NULL REFERENCES consumers,
    credits INTEGER NOT NULL CHECK (credits >= 1),
    PRIMARY KEY (lease, consumer)
);

-- Every making of credits. A call with an idempotency key makes them once.
CREATE TABLE grants (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    loan TEXT NOT NULL REFERENCES loans,
    consumer TEXT REFERENCES consumers,
    credits INTEGER NOT NULL CHECK (credits >= 1),
    kind TEXT NOT NULL CHECK (kind IN ('grant', 'approval', 'refund')),
    lease TEXT REFERENCES leases,
    reason TEXT NOT NULL,
    actor TEXT NOT NULL,
    idempotency_key TEXT UNIQUE,
    created_us INTEGER NOT NULL,
    CHECK ((kind = 'refund') = (lease IS NOT NULL))
);

-- Requests for more; at most one open for a consumer.
CREATE TABLE requests (
    request TEXT PRIMARY KEY,
    loan TEXT NOT NULL REFERENCES loans,
    consumer TEXT NOT NULL REFERENCES consumers,
    session TEXT NOT NULL REFERENCES sessions,
    credits INTEGER NOT NULL CHECK (credits >= 1),
    reason TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('open', 'approved', 'denied')),
    granted INTEGER NOT NULL CHECK (granted >= 0),
    decision_reason TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    decided_us INTEGER,
    CHECK ((state = 'open') = (decided_us IS NULL)),
    CHECK ((state = 'approved') = (granted > 0))
);
CREATE UNIQUE INDEX requests_one_open ON requests (loan, consumer) WHERE state = 'open';

-- Signed proofs of wiping, one for each session.
CREATE TABLE stop_proofs (
    session TEXT PRIMARY KEY REFERENCES sessions,
    payload BLOB NOT NULL,
    signature BLOB NOT NULL,
    received_us INTEGER NOT NULL
);

-- One row for each decision, for ever. No foreign keys: a refusal may name what does not exist.
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    time_us INTEGER NOT NULL,
    kind TEXT NOT NULL,
    actor TEXT NOT NULL,
    loan TEXT,
    session TEXT,
    consumer TEXT,
    lease TEXT,
    detail BLOB NOT NULL
);
CREATE INDEX events_of_loan ON events (loan, number);

-- What is append-only cannot be changed, whoever asks.
CREATE TRIGGER events_are_never_changed BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_are_never_deleted BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER grants_are_never_changed BEFORE UPDATE ON grants
BEGIN SELECT RAISE(ABORT, 'grants are append-only'); END;
CREATE TRIGGER grants_are_never_deleted BEFORE DELETE ON grants
BEGIN SELECT RAISE(ABORT, 'grants are append-only'); END;
CREATE TRIGGER settlements_are_never_changed BEFORE UPDATE ON settlements
BEGIN SELECT RAISE(ABORT, 'settlements are append-only'); END;
CREATE TRIGGER settlements_are_never_deleted BEFORE DELETE ON settlements
BEGIN SELECT RAISE(ABORT, 'settlements are append-only'); END;
