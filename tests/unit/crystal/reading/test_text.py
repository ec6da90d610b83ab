"""Bytes of any origin become text."""

from __future__ import annotations

import os

import pytest

from crystalforge.crystal.reading.text import decode, encoding_of, printable

TEXT = "# Müller, 1987\ndata_x\n_cell_length_a 4.12\n"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"]
)
def test_every_encoding_is_told(encoding, tmp_path):
    content = TEXT.encode(encoding)
    assert decode(content) == TEXT
    file = tmp_path / "x"
    file.write_bytes(content * 5000)
    assert file.read_text(encoding=encoding_of(file)).startswith(TEXT)


def test_a_byte_late_in_a_large_file_decides(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"a" * 3_000_000 + "é".encode("latin-1"))
    assert encoding_of(file) == "latin-1"
    file.write_bytes(b"a" * ((1 << 20) + 4095) + "é".encode())  # a character across two blocks
    assert encoding_of(file) == "utf-8"


@pytest.mark.parametrize("content", [b"", b"\x00", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", bytes(range(256))])
def test_nothing_is_refused(content):
    assert isinstance(decode(content), str)


def test_a_name_that_is_no_utf8_can_be_written_everywhere():
    name = os.fsdecode(b"Perowskit_\xfc.cif")
    assert printable(name) == r"Perowskit_\xfc.cif"
    assert printable(name).encode() == rb"Perowskit_\xfc.cif"
    assert printable("ü.cif") == "ü.cif"
