#!/bin/sh
# Exercise 4, docs/lab/hashes.md: find the passwords that are in the word list. Arguments: the folder with the desk's files, and their format.
set -eu
lab --proof
PATH=$PATH:/usr/sbin # Debian installs john there.
export HOME="$1"     # john stores the passwords that it finds in $HOME.
john --format="${2:-md5crypt}" --wordlist=/opt/bramble-lab/words.txt "$1/salted.txt" >/dev/null 2>&1 || true
john --format="${2:-md5crypt}" --show "$1/salted.txt" | grep : || true
