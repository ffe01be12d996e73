-- Language models: how long their context is, what their tokens cost, and blind limits on extraction.

-- Tokens that input and output of one query may have together, NULL for a model of tensors.
ALTER TABLE models ADD COLUMN context INTEGER CHECK (context >= 1);

-- Credits of a token, and whether what is kept of one consumer's prompt may serve another's.
ALTER TABLE loans ADD COLUMN price_input INTEGER NOT NULL DEFAULT 1 CHECK (price_input >= 1);
ALTER TABLE loans ADD COLUMN price_output INTEGER NOT NULL DEFAULT 1 CHECK (price_output >= 1);
ALTER TABLE loans ADD COLUMN shared_prefixes INTEGER NOT NULL DEFAULT 0
    CHECK (shared_prefixes IN (0, 1));

-- Limits and alarms of each consumer, NULL for none.
ALTER TABLE loans ADD COLUMN top_logprobs INTEGER CHECK (top_logprobs >= 0);
ALTER TABLE loans ADD COLUMN output_tokens_per_day INTEGER CHECK (output_tokens_per_day >= 1);
ALTER TABLE loans ADD COLUMN alike_per_day INTEGER CHECK (alike_per_day >= 1);
ALTER TABLE loans ADD COLUMN queries_per_day INTEGER CHECK (queries_per_day >= 1);
ALTER TABLE loans ADD COLUMN output_digits INTEGER CHECK (output_digits >= 1);
ALTER TABLE loans ADD COLUMN top_labels INTEGER CHECK (top_labels >= 1);

-- Output tokens of a consumer in a day (since 1970, UTC), as each enclave process last said;
-- what another day than the running one and its neighbours counted is deleted.
CREATE TABLE outputs (
    loan TEXT NOT NULL REFERENCES loans,
    consumer TEXT NOT NULL REFERENCES consumers,
    day INTEGER NOT NULL CHECK (day >= 0),
    watch TEXT NOT NULL,
    tokens INTEGER NOT NULL CHECK (tokens >= 0),
    PRIMARY KEY (loan, day, consumer, watch)
);
