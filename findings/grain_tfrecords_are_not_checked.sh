#!/usr/bin/env bash
# grain 0.2.18 (google-crc32c 1.8.0, Python 3.11): a TFRecord file carries a
# CRC-32C of each record, whose purpose is to show damage. TFRecordIterDataset
# reads the checksum and does not compare it: a record of which one byte changed
# on the disk is returned as if it were whole, without an error or a warning.
#
# A good engineer would expect an error that names the file and the place, as
# TensorFlow's own reader of the format raises (DataLossError).
#
# Output seen on 2026-11-30:
#   checksums of the file: right, wrong
#   grain: [b'first', b'sEcond']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
  grain==0.2.18 google-crc32c==1.8.0
"$folder/venv/bin/python" - "$folder/two.tfrecord" <<'PYTHON'
import struct
import sys

import google_crc32c
import grain


def masked(data):
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record(data):
  length = struct.pack("<Q", len(data))
  head = length + struct.pack("<I", masked(length))
  return head + data + struct.pack("<I", masked(data))


file = record(b"first") + record(b"second")
damaged = file.replace(b"second", b"sEcond")
checks, at = [], 0
while at < len(damaged):
  (length,) = struct.unpack_from("<Q", damaged, at)
  data = damaged[at + 12 : at + 12 + length]
  (crc,) = struct.unpack_from("<I", damaged, at + 12 + length)
  checks.append("right" if crc == masked(data) else "wrong")
  at += 16 + length
with open(sys.argv[1], "wb") as stream:
  stream.write(damaged)
records = list(grain.experimental.TFRecordIterDataset(sys.argv[1]))
print(f"checksums of the file: {', '.join(checks)}")
print(f"grain: {records}")
assert checks == ["right", "wrong"], checks
assert records == [b"first", b"sEcond"], "the behaviour has changed"
PYTHON
