"""MD5 hashes and rainbow tables, for hashes of one's own."""
