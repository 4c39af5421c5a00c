"""Records that travel compressed: what comes out is what went in, and never too much of it."""

from __future__ import annotations

import pytest
import zstandard

from gatehouse.common.databroker.compressed import MAX_BATCH_BYTES, compressed, unpack
from gatehouse.common.errors import ResourceExhaustedError, UnavailableError
from gatehouse.pb.databroker_pb2 import Record, RecordBatch, Versions

RECORDS = [Record(type="t", id=f"{number}", version=number) for number in range(100)]


def test_they_come_out_as_they_went_in():
    position = Versions(server_version=7)
    batch = RecordBatch(zstd=compressed(RECORDS), position=position)
    unpack(batch)
    assert batch == RecordBatch(records=RECORDS, position=position)


def test_what_is_not_compressed_stays():
    batch = RecordBatch(records=RECORDS)
    unpack(batch)
    assert list(batch.records) == RECORDS


def test_r29_a_bomb_is_refused_before_it_is_unpacked():
    bomb = zstandard.compress(bytes(MAX_BATCH_BYTES + 1))
    assert len(bomb) < 1 << 15
    with pytest.raises(ResourceExhaustedError):
        unpack(RecordBatch(zstd=bomb))


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        compressed(RECORDS)[:-1],
        compressed(RECORDS) + b"x",
        zstandard.compress(b"\xff"),
        zstandard.ZstdCompressor(write_content_size=False).compress(b""),
    ],
)
def test_what_does_not_unpack_is_an_error(data: bytes):
    with pytest.raises(UnavailableError):
        unpack(RecordBatch(zstd=data))
