"""Transparency logs as mathematics and text (RFC 6962, C2SP tlog-*): nothing here does I/O."""
