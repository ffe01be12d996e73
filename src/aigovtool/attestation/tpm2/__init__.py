"""TPM 2.0 quotes: what bytes say (`layout`), if they are genuine (`verify`), wanted (`policy`)."""
