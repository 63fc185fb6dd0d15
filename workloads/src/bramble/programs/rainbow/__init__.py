"""MD5 hashes and rainbow tables, for the user's own hashes."""
