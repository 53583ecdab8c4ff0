"""Every call of the control plane, once: what it is named, where it goes, what it sends.

``J`` and ``B`` are what a JSON and a bytes answer come as: at once, or to be awaited.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar
from urllib.parse import quote

Json = dict[str, Any]
J = TypeVar("J")
B = TypeVar("B")


def given(**values: object) -> Json:
    """The values that were given."""
    return {name: value for name, value in values.items() if value is not None}


class Calls(ABC, Generic[J, B]):
    """The control plane's calls on one VM; ``J`` and ``B`` are what a JSON and a bytes answer come as."""

    def __init__(self, vm: str) -> None:
        self.vm = vm

    @abstractmethod
    def _json(self, method: str, path: str, body: object = None, **params: object) -> J: ...

    @abstractmethod
    def _bytes(self, method: str, path: str, content: bytes | None = None, **params: object) -> B: ...

    def _vm(self, path: str = "") -> str:
        name = quote(self.vm, safe="") if self.vm.strip(".") else self.vm.replace(".", "%2E")  # never "up one folder"
        return f"/vms/{name}{path}"

    def _vcpu(self, vcpu: int, path: str = "") -> str:
        return self._vm(f"/vcpu/{vcpu}{path}")

    # -- the system --------------------------------------------------------------------------------------

    def kvm(self) -> J:
        """GET_API_VERSION and CHECK_EXTENSION."""
        return self._json("GET", "/kvm")

    def vms(self) -> J:
        """All VMs."""
        return self._json("GET", "/vms")

    def create_vm(self, **options: object) -> J:
        """KVM_CREATE_VM with any of id, vcpus, variant, engine, mode, irqchip, switches, programs, seed."""
        return self._json("POST", "/vms", options)

    def reset(self) -> J:
        """Drop everything; the server must allow it."""
        return self._json("POST", "/reset")

    # -- the VM ------------------------------------------------------------------------------------------

    def state(self) -> J:
        """The VM's shape."""
        return self._json("GET", self._vm())

    def delete(self) -> J:
        """Destroy the VM."""
        return self._json("DELETE", self._vm())

    def kick(self, timeout_ms: int | None = None) -> J:
        """KVM_KICK_ALL_RUNNING_VCPUS."""
        return self._json("POST", self._vm("/kick"), given(timeout_ms=timeout_ms))

    def resume(self) -> J:
        """KVM_RESUME_ALL_KICKED_VCPUS."""
        return self._json("POST", self._vm("/resume"))

    def locks(self) -> J:
        """Who holds the semaphore and who waits."""
        return self._json("GET", self._vm("/locks"))

    def create_irqchip(self) -> J:
        """KVM_CREATE_IRQCHIP."""
        return self._json("POST", self._vm("/irqchip"))

    def irq_line(self, irq: int, level: int) -> J:
        """KVM_IRQ_LINE."""
        return self._json("POST", self._vm("/irq-line"), {"irq": irq, "level": level})

    def signal_msi(self, address: int, data: int) -> J:
        """KVM_SIGNAL_MSI."""
        return self._json("POST", self._vm("/msi"), {"address": hex(address), "data": data})

    # -- memory ------------------------------------------------------------------------------------------

    def allocate(self, size: int, name: str | None = None, fill: object = None) -> J:
        """Allocate host memory: ``{userspace_addr, size}``."""
        return self._json("POST", self._vm("/host-memory"), given(size=size, name=name, fill=fill))

    def read_host(self, userspace_addr: int | str, length: int) -> B:
        """Read host memory."""
        return self._bytes("GET", self._vm(f"/host-memory/{_address(userspace_addr)}"), length=length)

    def write_host(self, userspace_addr: int | str, data: bytes) -> B:
        """Write host memory."""
        return self._bytes("PUT", self._vm(f"/host-memory/{_address(userspace_addr)}"), data)

    def regions(self) -> J:
        """The memory slots."""
        return self._json("GET", self._vm("/memory-regions"))

    def set_region(
        self, slot: int, guest_phys_addr: int, memory_size: int, userspace_addr: int | str, flags: object = 0
    ) -> J:
        """KVM_SET_USER_MEMORY_REGION."""
        return self._json(
            "PUT", self._vm(f"/memory-regions/{slot}"), _region(guest_phys_addr, memory_size, userspace_addr, flags)
        )

    def delete_region(self, slot: int) -> J:
        """Delete one slot."""
        return self._json("DELETE", self._vm(f"/memory-regions/{slot}"))

    def memory_transaction(
        self, operations: Sequence[Json], protect: str | None = None, timeout_ms: int | None = None
    ) -> J:
        """Several slot changes, all or none, protected by ``kick``, ``list`` or ``none``.

        ETIMEDOUT, and nothing has changed, if the kick takes longer than ``timeout_ms``.
        """
        body = given(operations=list(operations), protect=protect, timeout_ms=timeout_ms)
        return self._json("POST", self._vm("/memory-transaction"), body)

    def dirty_log(self, slot: int) -> J:
        """KVM_GET_DIRTY_LOG."""
        return self._json("GET", self._vm(f"/dirty-log/{slot}"))

    def clear_dirty_log(self, slot: int, **pages: object) -> J:
        """KVM_CLEAR_DIRTY_LOG of the whole slot, or of ``first_page``, ``num_pages``, ``bits``."""
        return self._json("POST", self._vm(f"/dirty-log/{slot}/clear"), pages)

    # -- vCPUs -------------------------------------------------------------------------------------------

    def create_vcpu(self, vcpu: int) -> J:
        """KVM_CREATE_VCPU."""
        return self._json("POST", self._vm("/vcpu"), {"id": vcpu})

    def vcpus(self, state: str | None = None) -> J:
        """The table of vCPUs."""
        return self._json("GET", self._vm("/vcpu"), None, **given(state=state))

    def vcpu(self, vcpu: int) -> J:
        """One vCPU's shape."""
        return self._json("GET", self._vcpu(vcpu))

    def run(
        self,
        vcpu: int,
        *,
        reply: bytes | None = None,
        immediate_exit: bool | None = None,
        timeout_ms: int | None = None,
        nowait: bool | None = None,
    ) -> J:
        """KVM_RUN; answers when the vCPU leaves it."""
        return self._json(
            "POST",
            self._vcpu(vcpu, "/run"),
            given(
                reply=None if reply is None else reply.hex(),
                immediate_exit=immediate_exit,
                timeout_ms=timeout_ms,
                nowait=nowait,
            ),
        )

    def regs(self, vcpu: int) -> J:
        """KVM_GET_REGS."""
        return self._json("GET", self._vcpu(vcpu, "/regs"))

    def set_regs(self, vcpu: int, **registers: int) -> J:
        """KVM_SET_REGS for the named registers."""
        return self._json("PUT", self._vcpu(vcpu, "/regs"), {name: hex(value) for name, value in registers.items()})

    def sregs(self, vcpu: int) -> J:
        """KVM_GET_SREGS."""
        return self._json("GET", self._vcpu(vcpu, "/sregs"))

    def set_sregs(self, vcpu: int, changes: Mapping[str, object]) -> J:
        """KVM_SET_SREGS for the named registers."""
        return self._json("PUT", self._vcpu(vcpu, "/sregs"), dict(changes))

    def mp_state(self, vcpu: int) -> J:
        """KVM_GET_MP_STATE."""
        return self._json("GET", self._vcpu(vcpu, "/mp-state"))

    def set_mp_state(self, vcpu: int, mp_state: str) -> J:
        """KVM_SET_MP_STATE."""
        return self._json("PUT", self._vcpu(vcpu, "/mp-state"), {"mp_state": mp_state})

    def interrupt(self, vcpu: int, vector: int) -> J:
        """KVM_INTERRUPT."""
        return self._json("POST", self._vcpu(vcpu, "/interrupt"), {"vector": vector})

    def nmi(self, vcpu: int) -> J:
        """KVM_NMI."""
        return self._json("POST", self._vcpu(vcpu, "/nmi"))

    def signal(self, vcpu: int) -> J:
        """A signal to the vCPU's thread."""
        return self._json("POST", self._vcpu(vcpu, "/signal"))

    def set_program(self, vcpu: int, program: Sequence[object]) -> J:
        """Load a script guest's program."""
        return self._json("PUT", self._vcpu(vcpu, "/program"), list(program))

    def start(self, vcpu: int, behaviour: str = "well", *, handle_exits: bool = True) -> J:
        """Start a server-side VMM thread that loops KVM_RUN."""
        return self._json("POST", self._vcpu(vcpu, "/start"), {"behaviour": behaviour, "handle_exits": handle_exits})

    def stop(self, vcpu: int) -> J:
        """Stop it."""
        return self._json("POST", self._vcpu(vcpu, "/stop"))

    # -- snapshots ---------------------------------------------------------------------------------------

    def snapshot(self) -> B:
        """A consistent snapshot: kicked, registers and memory copied, resumed."""
        return self._bytes("POST", self._vm("/snapshot"))

    def restore(self, snapshot: bytes, name: str | None = None) -> J:
        """Make a VM of a snapshot; it comes up kicked."""
        return self._json("POST", "/vms/restore", snapshot, **given(id=name))

    # -- scripts and the past ----------------------------------------------------------------------------

    def script(self, operations: Sequence[Json]) -> J:
        """Perform a list of ioctl-script operations in one request."""
        return self._json("POST", self._vm("/script"), list(operations))

    def trace(self, format: str = "chrome") -> B:
        """The recorded past as a file other tools open."""
        return self._bytes("GET", self._vm("/trace"), format=format)


def region(slot: int, guest_phys_addr: int, memory_size: int, userspace_addr: int | str, flags: object = 0) -> Json:
    """One operation of a memory transaction; size 0 deletes."""
    return {"slot": slot, **_region(guest_phys_addr, memory_size, userspace_addr, flags)}


def _region(guest_phys_addr: int, memory_size: int, userspace_addr: int | str, flags: object) -> Json:
    return {
        "flags": flags,
        "guest_phys_addr": hex(guest_phys_addr),
        "memory_size": memory_size,
        "userspace_addr": _address(userspace_addr),
    }


def _address(address: int | str) -> str:
    return address if isinstance(address, str) else hex(address)
