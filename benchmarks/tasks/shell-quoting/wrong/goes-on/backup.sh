#!/bin/bash
if [ $# -ne 2 ]; then
  echo "Usage: backup.sh SOURCE TARGET" >&2
  exit 2
fi
mkdir -p -- "$2"
find "$1" -name "*.txt" -exec cp -t "$2" -- {} +
find "$1" -name "*.txt" -printf . | wc -c
