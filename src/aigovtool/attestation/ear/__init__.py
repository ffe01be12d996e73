"""The verdict as a signed EAR token, for those who consume attestation results (passport model)."""
