#!/bin/bash
if [ $# -ne 2 ]; then
  echo "Usage: backup.sh SOURCE TARGET" >&2
  exit 2
fi
mkdir -p -- "$2" || exit 1
n=0
while read -r f; do
  cp -- "$f" "$2" && n=$((n+1))
done < <(find "$1" -name "*.txt")
echo "$n"
