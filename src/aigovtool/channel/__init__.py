"""Attested connections: judged with a fresh nonce before the first byte of a request is sent."""
