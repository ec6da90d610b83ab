"""Bytes to text, whatever wrote them: byte-order marks, UTF-16 without one, and the 8-bit encodings of old programs.

Crystal files are ASCII but for names and comments. Bytes that are no UTF-8 are read as Windows' Latin-1, in which every
byte is a character: nothing is lost, and an accent at worst is another.
"""

from __future__ import annotations

import codecs
import os
from pathlib import Path

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
SAMPLE = 4096
BLOCK = 1 << 20
FALLBACK = "latin-1"


def encoding_of_bytes(start: bytes) -> str | None:
    """The encoding that the first bytes betray, None where they could be UTF-8 or an 8-bit encoding."""
    for mark, name in MARKS:
        if start.startswith(mark):
            return name
    even, odd = start[:SAMPLE:2], start[1:SAMPLE:2]
    if len(odd) > 3 and odd.count(0) > 0.8 * len(odd) and even.count(0) == 0:
        return "utf-16-le"
    if len(odd) > 3 and even.count(0) > 0.8 * len(even) and odd.count(0) == 0:
        return "utf-16-be"
    return None


def decode(content: bytes) -> str:
    """The text of a file's bytes; never fails.

    >>> decode("Müller".encode("latin-1")), decode("\\ufeffdata_x".encode("utf-16"))
    ('Müller', 'data_x')
    """
    known = encoding_of_bytes(content[:SAMPLE])
    if known is not None:
        return content.decode(known, errors="replace").removeprefix("\ufeff")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode(FALLBACK)


def encoding_of(file: Path) -> str:
    """The encoding of a file that is too large to be read at once; the whole of it is looked at."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with file.open("rb") as stream:
        start = stream.read(SAMPLE)
        known = encoding_of_bytes(start)
        if known is not None:
            return known
        try:
            decoder.decode(start)
            while block := stream.read(BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return FALLBACK
    return "utf-8"


def printable(path: os.PathLike[str] | str) -> str:
    r"""A path as text that every file and table can hold: bytes that are no UTF-8 are written as `\xfc`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
