#!/bin/sh
# SPDX-License-Identifier: MIT
# What the headers cost a compiler: medians, in seconds, on an idle machine.
#
#     CXX=g++ EIGEN=/usr/include/eigen3 sh bench/compile_time.sh
#
# Budgets: parsing moe.hpp takes at most 1.5 times parsing Eigen/Core, immintrin.h and thread;
# the first example compiles in at most 10 s with -O2.
set -eu
cd "$(dirname "$0")/.."
compiler=${CXX:-g++}
eigen=${EIGEN:-/usr/include/eigen3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

printf '#include <Eigen/Core>\n#include <immintrin.h>\n#include <thread>\n' > "$work/base.cpp"
printf '#include <moe/moe.hpp>\n' > "$work/moe.cpp"

# seconds FLAGS... FILE: of one run
seconds() {
    begin=$(date +%s%N)
    "$compiler" -std=c++20 -Iinclude -isystem "$eigen" "$@" > /dev/null
    echo "$begin $(date +%s%N)" | awk '{ printf "%.3f\n", ($2 - $1) / 1e9 }'
}
median() { sort -n "$1" | awk '{ t[NR] = $1 } END { printf "%.2f", t[int((NR + 1) / 2)] }'; }

"$compiler" --version | head -n 1
for run in 1 2 3 4 5 6 7; do  # in turn: other work on the machine meets all of them
    seconds -fsyntax-only "$work/base.cpp" >> "$work/base"
    seconds -fsyntax-only "$work/moe.cpp" >> "$work/moe"
done
for run in 1 2 3; do seconds -O2 -c -o "$work/first.o" examples/01_*.cpp >> "$work/first"; done
base=$(median "$work/base") ours=$(median "$work/moe") first=$(median "$work/first")
printf 'parse Eigen/Core + immintrin.h + thread   %6s s\n' "$base"
printf 'parse moe.hpp                             %6s s   %s times that, budget 1.5\n' "$ours" \
    "$(awk "BEGIN { printf \"%.2f\", $ours / $base }")"
printf 'compile the first example with -O2        %6s s   budget 10 s\n' "$first"
