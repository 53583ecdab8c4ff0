"""A VM whose four vCPUs sleep, each for another reason: what the page says of pending interrupts is about them."""

import struct

from kickstand.client import Client
from tests.guests.apic_guest import APIC, CODES, SREGS

SIZE = 0x10000
HOST = 0x7F0000000000
ENTRY = 0x8000
HANDLER, VECTOR = 0x7000, 0x41
SPURIOUS, EOI, TASK_PRIORITY, TIMER, INITIAL, DIVIDER = 0xF0, 0xB0, 0x80, 0x320, 0x380, 0x3E0
PERIODIC, BY_ONE = 1 << 17, 0xB
STI, CLI, HLT_FOR_EVER, IRET = b"\xfb", b"\xfa", b"\xf4\xeb\xfd", b"\xcf"


def _apic(**registers):
    return b"".join(CODES["write"](APIC + globals()[name], value) for name, value in registers.items())


def codes(period_ns):
    """Of vCPU 0, which waits for its timer; 1, for a vector above its priority; 2, with interrupts off."""
    on = _apic(SPURIOUS=0x1FF)
    timer = _apic(DIVIDER=BY_ONE, TIMER=PERIODIC | VECTOR, INITIAL=period_ns)
    return on + timer + STI + HLT_FOR_EVER, on + _apic(TASK_PRIORITY=0x40) + STI + HLT_FOR_EVER, on + CLI + HLT_FOR_EVER


def put_to_sleep(url, name="sleepers", period_ns=2_000_000_000):
    """Make the VM; its vCPU 3 waits for INIT. Vector 0x31 is pending for 1, and 0x55 and 0x31 for 2."""
    with Client(url) as client:
        client.create_vm(id=name, vcpus=4, engine="x86", irqchip=True)
    with Client(url, vm=name) as vm:
        vm.allocate(SIZE)
        vm.set_region(0, 0, SIZE, HOST)
        vm.write_host(HOST + 4 * VECTOR, struct.pack("<HH", HANDLER, 0))
        vm.write_host(HOST + HANDLER, _apic(EOI=0) + IRET)
        for number, code in enumerate(codes(period_ns)):
            entry = ENTRY + 0x100 * number
            vm.write_host(HOST + entry, code)
            vm.set_mp_state(number, "RUNNABLE")
            vm.set_sregs(number, SREGS)
            vm.set_regs(number, rip=entry, rsp=HANDLER, rflags=2)
        for number in range(4):
            vm.start(number, behaviour="careless")
        while [vm.vcpu(number)["state"] for number in range(1, 4)] != ["halted", "halted", "blocked"]:
            pass
        for number, vector in ((1, 0x31), (2, 0x55), (2, 0x31)):
            vm.signal_msi(address=APIC + 0x1000 * number, data=vector)
