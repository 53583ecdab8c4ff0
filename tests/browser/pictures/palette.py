"""Makes a screenshot small: 255 colours at most, as a PNG with a palette. The browser decodes, zlib packs."""

import base64
import struct
import zlib
from pathlib import Path

# The most frequent colours, spread over what there is; every other pixel takes the nearest.
INDEXED = (Path(__file__).parent / "palette.js").read_text()


def pack(blank, png, colours):
    """The PNG with so few colours. ``blank`` is a page without a policy of its own."""
    found = blank.evaluate(INDEXED, [base64.b64encode(png).decode(), colours])
    width, height = found["width"], found["height"]
    rows = base64.b64decode(found["indices"])
    # Filter 0 before each row: indices compress best as they are.
    raw = b"".join(b"\0" + rows[at : at + width] for at in range(0, width * height, width))
    palette = b"".join(colour.to_bytes(3, "big") for colour in found["palette"])
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(name, data)
        for name, data in ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    )


def _chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
