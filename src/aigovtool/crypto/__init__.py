"""Keys, signatures and hybrid encryption: thin over pyca/cryptography; every label in one list."""
