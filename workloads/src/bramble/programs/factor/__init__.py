"""The prime factors of a number, by trial division: what public keys rely on nobody doing for large ones."""
