#!/bin/bash
mkdir -p $2
n=0
for f in $(find $1 -name *.txt); do
  cp $f $2
  n=$((n+1))
done
echo $n
