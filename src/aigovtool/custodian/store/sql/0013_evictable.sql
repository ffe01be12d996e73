-- Whether an enclave may let an idle model of the loan make room for another loan's.
ALTER TABLE loans ADD COLUMN evictable INTEGER NOT NULL DEFAULT 0 CHECK (evictable IN (0, 1));
