"""Keys, signatures and hybrid encryption: thin over pyca/cryptography, with every label in one list."""
