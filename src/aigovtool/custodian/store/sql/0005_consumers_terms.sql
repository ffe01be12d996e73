-- Consumers' and loans' limits, consumers' expiry dates, and budgets that begin anew.

-- A rate is a number of credits in a number of seconds; its bucket is full again at rate_full_us.
ALTER TABLE loans ADD COLUMN rate_credits INTEGER CHECK (rate_credits >= 1);
ALTER TABLE loans ADD COLUMN rate_per_s INTEGER
    CHECK ((rate_per_s IS NULL) = (rate_credits IS NULL) AND (rate_per_s IS NULL OR rate_per_s >= 1));
ALTER TABLE loans ADD COLUMN rate_full_us INTEGER;
ALTER TABLE loans ADD COLUMN concurrency INTEGER CHECK (concurrency >= 1);

ALTER TABLE consumers ADD COLUMN rate_credits INTEGER CHECK (rate_credits >= 1);
ALTER TABLE consumers ADD COLUMN rate_per_s INTEGER
    CHECK ((rate_per_s IS NULL) = (rate_credits IS NULL) AND (rate_per_s IS NULL OR rate_per_s >= 1));
ALTER TABLE consumers ADD COLUMN rate_full_us INTEGER;
ALTER TABLE consumers ADD COLUMN concurrency INTEGER CHECK (concurrency >= 1);

-- From expires_us on a consumer is refused; expired says that its enclaves were told.
ALTER TABLE consumers ADD COLUMN expires_us INTEGER;
ALTER TABLE consumers ADD COLUMN expired INTEGER NOT NULL DEFAULT 0 CHECK (expired IN (0, 1));

-- The period that a consumer's budget is for; only one with a budget of its own has one.
ALTER TABLE consumers ADD COLUMN period TEXT
    CHECK (period IS NULL OR (period IN ('day', 'month') AND budgeted = 1));
ALTER TABLE consumers ADD COLUMN period_budget INTEGER
    CHECK ((period_budget IS NULL) = (period IS NULL) AND (period IS NULL OR period_budget >= 0));
ALTER TABLE consumers ADD COLUMN period_began_us INTEGER
    CHECK ((period_began_us IS NULL) = (period IS NULL));
ALTER TABLE consumers ADD COLUMN period_ends_us INTEGER
    CHECK ((period_ends_us IS NULL) = (period IS NULL)
        AND (period IS NULL OR period_ends_us > period_began_us));
ALTER TABLE consumers ADD COLUMN period_excess INTEGER
    CHECK ((period_excess IS NULL) = (period IS NULL) AND (period IS NULL OR period_excess >= 0));
CREATE INDEX consumers_by_period ON consumers (period_ends_us) WHERE period IS NOT NULL;
CREATE INDEX consumers_with_concurrency ON consumers (loan) WHERE concurrency IS NOT NULL;
CREATE INDEX consumers_to_expire ON consumers (expires_us) WHERE expired = 0;

-- Every turn of a budget to a new period: what was withdrawn, and what was granted.
CREATE TABLE periods (
    consumer TEXT NOT NULL REFERENCES consumers,
    loan TEXT NOT NULL REFERENCES loans,
    number INTEGER NOT NULL CHECK (number >= 1),
    unit TEXT NOT NULL CHECK (unit IN ('day', 'month')),
    began_us INTEGER NOT NULL,
    withdrawn INTEGER NOT NULL CHECK (withdrawn >= 0),
    granted INTEGER NOT NULL CHECK (granted >= 0),
    created_us INTEGER NOT NULL,
    PRIMARY KEY (consumer, number)
);
CREATE INDEX periods_of_loan ON periods (loan, created_us);

CREATE TRIGGER periods_are_never_changed BEFORE UPDATE ON periods
BEGIN SELECT RAISE(ABORT, 'periods are append-only'); END;
CREATE TRIGGER periods_are_never_deleted BEFORE DELETE ON periods
BEGIN SELECT RAISE(ABORT, 'periods are append-only'); END;
