"""Writes TFRecord files by their definition, one byte after the other."""

import gzip
import struct

from tensorflow_datasets.proto import tf_example_pb2


def crc32c(data):
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  return crc ^ 0xFFFFFFFF


def masked(data):
  crc = crc32c(data)
  return struct.pack(
    "<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
  )


def framed(record):
  length = struct.pack("<Q", len(record))
  return length + masked(length) + record + masked(record)


def example(**values):
  """A tf.train.Example; a double underscore in a name stands for a slash."""
  message = tf_example_pb2.Example()
  for name, value in values.items():
    feature = message.features.feature[name.replace("__", "/")]
    if isinstance(value, int):
      feature.int64_list.value.append(value)
    else:
      raw = value.encode() if isinstance(value, str) else value
      feature.bytes_list.value.append(raw)
  return message.SerializeToString()


def write(path, records):
  path.parent.mkdir(parents=True, exist_ok=True)
  data = b"".join(map(framed, records))
  path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
  return path
