#!/usr/bin/env bash
# Every benchmark of the data side, one after another, in one run:
#   bash tests/benchmarks/data.sh [PYTHON_WITH_DATATROVE_AND_DATASKETCH [PYTHON_WITH_LITDATA_AND_STREAMING]]
# Its own python is the one on PATH. The loader's files are in memory, so that the loader is timed and not the disk.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."
text_peers=("${@:1:1}") loader_peers=("${@:2:1}")

run() {
    echo "== $* ($(date -u +%H:%M:%S))"
    python -m "tests.benchmarks.$1" "${@:2}"
}
run tokenize_and_pack --megabytes 100 --rounds 5 ${text_peers:+--datatrove "${text_peers[0]}"}
run cleaning --megabytes 0.7 ${text_peers:+--datatrove "${text_peers[0]}"}
run cleaning --megabytes 0.7 --chars 800 ${text_peers:+--datatrove "${text_peers[0]}"}
run loader --folder /dev/shm ${loader_peers:+--peers --peers-python "${loader_peers[0]}"}
run dedup ${text_peers:+--datasketch "${text_peers[0]}" --datatrove "${text_peers[0]}"}
run prepare_memory
run document_mask
run tokenize_and_pack --megabytes 600 --rounds 5 --alone
