"""The consumer's side: verify an enclave, query it, see what is left."""
