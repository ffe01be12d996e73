"""Serving measured side by side: the enclave, the bare engine, and other model servers."""
