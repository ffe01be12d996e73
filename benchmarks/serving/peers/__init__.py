"""One script for each other server; it runs in that server's environment, and imports only that."""
