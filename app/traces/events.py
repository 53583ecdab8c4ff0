"""Events as lines of JSON, each as a stream sends it."""

from __future__ import annotations

from kickstand.traces.recording import Recording


def events(recording: Recording) -> bytes:
    """Encode a recording: ``{"id", "event", "data"}``, oldest first."""
    epoch = recording.epoch
    return "".join(
        f'{{"id":"{epoch}-{record.seq}","event":"{record.name}","data":{record.data}}}\n'
        for record in recording.records
    ).encode()
