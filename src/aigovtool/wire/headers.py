"""The names of our own HTTP headers and the paths that the three roles meet on."""

from __future__ import annotations

REMAINING = "Aigovtool-Remaining"
RECEIPT = "Aigovtool-Receipt"
REFUND = "Aigovtool-Refund"  # a receipt that takes back the one in `RECEIPT`
REASON = "Aigovtool-Reason"  # a consumer's own words for why it needs more; goes to the custodian

REPLAYED = "Aigovtool-Replayed"  # `1`: the answer that the same Idempotency-Key got before
LOAN = "Aigovtool-Loan"  # which loan's evidence, where an enclave serves several
PLACE = "Aigovtool-Place"  # of a query that waited in vain: `3;of=12`

ATTESTATION_PATH = "/.well-known/attestation"  # on the enclave, for consumers
BUDGET_PATH = "/v1/budget"
WAITING_PATH = "/v1/waiting"

CHALLENGE_PATH = "/enclave/v1/challenge"  # on the custodian, for enclaves
ENROL_PATH = "/enclave/v1/enrol"
BODY_PATH = "/enclave/v1/models/{digest}/body"
CONTROL_PATH = "/enclave/v1/control"
