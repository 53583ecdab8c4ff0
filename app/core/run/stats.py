"""KVM_GET_STATS_FD: a file of statistics that describes itself (``struct kvm_stats_header`` and what follows)."""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct

from kickstand.core.run.watched import Counters

NAME_SIZE = 48
_HEADER = Struct("<6I")  # flags, name_size, num_desc, id_offset, desc_offset, data_offset
_DESCRIPTOR = Struct(f"<IhHII{NAME_SIZE}s")  # flags, exponent, size, offset, bucket_size, name
_CUMULATIVE = 0  # a number without unit that only grows
_VCPU = {
    "exits": "entries",
    "io_exits": "pio",
    "mmio_exits": "mmio",
    "signal_exits": "signal_exits",
    "halt_exits": "halts",
    "halt_wakeup": "halt_wakeups",
    "request_irq_exits": "request_irq_exits",
}
"""KVM's name of a vCPU's statistic: the counter that it is."""


def of_vcpu(counters: Counters) -> dict[str, int]:
    """A vCPU's, by KVM's names."""
    return {name: getattr(counters, counter) for name, counter in _VCPU.items()}


def image(name: str, values: Mapping[str, int]) -> bytes:
    """The file: header, id, descriptors, data."""
    descriptors = _HEADER.size + NAME_SIZE
    data = descriptors + len(values) * _DESCRIPTOR.size
    parts = [
        _HEADER.pack(0, NAME_SIZE, len(values), _HEADER.size, descriptors, data),
        name.encode().ljust(NAME_SIZE, b"\0"),
        *(_DESCRIPTOR.pack(_CUMULATIVE, 0, 1, 8 * at, 0, known.encode()) for at, known in enumerate(values)),
        *(value.to_bytes(8, "little") for value in values.values()),
    ]
    return b"".join(parts)
