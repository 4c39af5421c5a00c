"""Answers how the records of a copy travel compressed, and how much a receiver unpacks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import zstandard
from google.protobuf.message import DecodeError

from gatehouse.common.errors import ResourceExhaustedError, UnavailableError
from gatehouse.pb.databroker_pb2 import Record, RecordBatch

MAX_BATCH_BYTES: Final = 16 << 20  # what a gRPC message may have, see rpc/service_config.py
_LEVEL: Final = 3  # zstd's own default; records repeat so much that more effort gains little
_UNKNOWN: Final = -1  # a frame that does not say how much is in it


def compressed(records: Iterable[Record]) -> bytes:
    """Return records as `RecordBatch.zstd` holds them: one frame that says its size (RFC 8878)."""
    data = RecordBatch(records=records).SerializeToString()
    return zstandard.ZstdCompressor(level=_LEVEL).compress(data)


def unpack(batch: RecordBatch) -> None:
    """Put the records of a batch in their place, where they came compressed.

    Raises ResourceExhaustedError when they are more than a message may have, UnavailableError for
    bytes that are no batch: another try, or another databroker, may do better.
    """
    if not batch.zstd:
        return
    try:
        size = zstandard.frame_content_size(batch.zstd)
        if size > MAX_BATCH_BYTES:
            raise ResourceExhaustedError(f"a batch unpacks to more than {MAX_BATCH_BYTES} bytes")
        if size == _UNKNOWN:
            raise UnavailableError("a batch of records does not say its size")
        data = zstandard.ZstdDecompressor().decompress(batch.zstd, allow_extra_data=False)
        batch.MergeFromString(data)
    except (zstandard.ZstdError, DecodeError) as error:
        raise UnavailableError("a batch of records does not unpack") from error
    batch.ClearField("zstd")
