"""Ciphers for teaching: Caesar's cipher, and public keys with small numbers. None of them is secure."""
