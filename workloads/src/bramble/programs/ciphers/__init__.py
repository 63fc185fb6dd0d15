"""Ciphers to learn from: Caesar's, and public keys in small numbers. Nothing here keeps a secret."""
