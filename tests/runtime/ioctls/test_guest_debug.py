"""A debugger's breakpoints and single steps leave KVM_RUN where they should; coalesced writes do not leave it."""

import pytest

from kickstand.core.arch.coalesced import ENTRIES, CoalescedIo, Entry, Zone
from kickstand.core.errors import KvmError
from kickstand.guests.x86.state.debug import BLOCKIRQ, ENABLE, INJECT_BP, SINGLESTEP, USE_HW_BP, USE_SW_BP
from kickstand.journal.records import Recorder
from kickstand.journal.restore import Saved, restore
from kickstand.runtime.registry import Registry
from tests.runtime.ioctls.test_x86_exits_to_userspace import CODE, HLT, PAGE, made

NONE = [0] * 8
ACTIVE_LOW = 0xFFFF0FF0


def watch(number, address, kind):
    """DR7 that enables one breakpoint; ``kind``: its four bits."""
    registers = list(NONE)
    registers[number], registers[7] = address, 0x400 | 2 << 2 * number | kind << 16 + 4 * number
    return registers


async def run(machine):
    answer = await machine.run(0)
    return answer.get("debug") or answer["exit_reason"]


def at(pc, bits, *, exception=1, dr7="0x400"):
    return {"exception": exception, "pc": hex(pc), "dr6": hex(ACTIVE_LOW | bits), "dr7": dr7}


async def test_single_steps_go_through_whatever_the_cpu_executes(registry):
    # inc eax; cpuid; out 0x10, al; inc ebx; hlt
    machine = await made(registry, "40" + "0fa2" + "e610" + "43" + HLT)
    await machine.set_guest_debug(0, ENABLE | SINGLESTEP | BLOCKIRQ, NONE)
    assert await run(machine) == at(CODE + 1, 1 << 14)
    assert await run(machine) == at(CODE + 3, 1 << 14)
    assert await run(machine) == "KVM_EXIT_IO"
    assert await run(machine) == at(CODE + 5, 1 << 14)  # the port's instruction is over only now
    assert await run(machine) == at(CODE + 6, 1 << 14)
    await machine.set_guest_debug(0, 0, NONE)
    assert await run(machine) == "KVM_EXIT_HLT"


@pytest.mark.parametrize("number", range(4))
async def test_a_breakpoint_in_code_comes_before_its_instruction(registry, number):
    machine = await made(registry, "4043" + HLT, rax=7, rbx=0)
    debug = watch(number, CODE + 1, 0)
    await machine.set_guest_debug(0, ENABLE | USE_HW_BP, debug)
    assert await run(machine) == at(CODE + 1, 1 << number, dr7=hex(debug[7]))
    regs = await machine.get_regs(0)
    assert (regs["rax"], regs["rbx"], regs["rip"]) == (8, 0, CODE + 1)


@pytest.mark.parametrize(
    ("kind", "code", "hits"),
    [
        (0b1101, "a302300000", True),  # a store of 4 bytes that ends in it
        (0b1101, "a1fe2f0000", False),  # a load, where only stores count
        (0b1111, "a1fe2f0000", True),
        (0b0001, "a2ff2f0000", False),  # a byte before it
        (0b0001, "a200300000", True),
    ],
)
async def test_a_breakpoint_on_data_comes_after_the_access(registry, kind, code, hits):
    machine = await made(registry, code + HLT)
    await machine.set_guest_debug(0, ENABLE | USE_HW_BP, debug := watch(2, PAGE, kind))
    expected = at(CODE + 5, 1 << 2, dr7=hex(debug[7])) if hits else "KVM_EXIT_HLT"
    assert await run(machine) == expected


async def test_int3_is_the_debuggers_if_it_wants_it_and_the_guests_else(registry):
    machine = await made(registry, "40cc" + HLT)
    await machine.set_guest_debug(0, ENABLE | USE_SW_BP, NONE)
    assert await run(machine) == at(CODE + 1, 0, exception=3)
    assert (await machine.get_regs(0))["rip"] == CODE + 1
    await machine.set_guest_debug(0, 0, NONE)
    await machine.set_sregs(0, {"idt": {"base": 0, "limit": 0}})
    assert await run(machine) == "KVM_EXIT_SHUTDOWN"


async def test_a_guarded_debug_register_is_seen_before_it_is_moved(registry):
    machine = await made(registry, "0f21c0" + HLT)
    debug = [*NONE[:7], 0x2400]
    await machine.set_guest_debug(0, ENABLE | USE_HW_BP, debug)
    assert await run(machine) == at(CODE, 1 << 13, dr7="0x2400")


async def test_an_exception_is_injected_once(registry):
    machine = await made(registry, HLT)
    await machine.set_guest_debug(0, ENABLE | INJECT_BP, NONE)
    with pytest.raises(KvmError, match="EBUSY"):
        await machine.set_guest_debug(0, ENABLE | INJECT_BP, NONE)
    assert (await machine.get_vcpu_events(0))["exception"]["nr"] == 3


async def test_a_debugger_stays_over_a_restart(registry):
    machine = await made(registry, "4040" + HLT)
    await machine.set_guest_debug(0, ENABLE | SINGLESTEP, NONE)
    await machine.register_coalesced(Zone(0xD0000, 16, 0))
    machine.vm.arch.coalesced.take(0xD0000, b"\1", 0)
    other = Registry()
    again = await restore(other, Saved(Recorder(machine).whole()), _memory)
    try:
        assert again.vm.arch.coalesced.zones == (Zone(0xD0000, 16, 0),)
        assert await again.drain_coalesced() == [Entry(0xD0000, 0, b"\1")]
        await again.resume()
        assert (await run(again)) != "KVM_EXIT_HLT"
    finally:
        await other.reset()


async def _memory(machine):
    arena = machine.memory.allocate(0x10000)
    machine.memory.write(arena.base + CODE, bytes.fromhex("4040" + HLT))


# -- coalesced writes ------------------------------------------------------------------------------------------


async def test_writes_in_a_zone_are_noted_and_do_not_leave(registry):
    # mov [0xd0000], eax; out 0x80, al; mov [0xd0008], eax; hlt
    machine = await made(registry, "a300000d00" + "e680" + "a308000d00" + HLT, rax=0x11223344)
    await machine.register_coalesced(Zone(0xD0000, 8, 0))
    await machine.register_coalesced(Zone(0x80, 1, 1))
    exit = await machine.run(0)
    assert (exit["exit_reason"], exit["mmio"]["phys_addr"]) == ("KVM_EXIT_MMIO", "0xd0008")
    noted = [Entry(0xD0000, 0, bytes.fromhex("44332211")), Entry(0x80, 1, b"\x44")]
    assert await machine.drain_coalesced() == noted
    assert await machine.drain_coalesced() == []


def test_a_ring_keeps_one_entry_free_and_goes_on_where_the_program_has_read():
    ring, page, other = CoalescedIo(), bytearray(4096), bytearray(4096)
    ring.register(Zone(0, 8, 0))
    for mapped in (page, other):
        ring.map(memoryview(mapped))
    pushed = sum(ring.take(0, bytes([n & 0xFF]), 0) for n in range(ENTRIES + 5))
    assert pushed == ENTRIES - 1
    assert page == other
    other[0:4] = (2).to_bytes(4, "little")  # two are read, in whichever mapping
    assert [ring.take(0, b"\1", 0) for _ in range(3)] == [True, True, False]
    assert int.from_bytes(page[4:8], "little") == 1


def test_a_zone_goes_with_one_that_lies_in_it():
    ring = CoalescedIo()
    ring.register(Zone(0x10, 0x10, 0))
    ring.unregister(Zone(0x18, 4, 1))
    assert ring.take(0x1C, b"1234", 0)
    assert not ring.take(0x1D, b"1234", 0)
    ring.unregister(Zone(0x18, 4, 0))
    assert ring.zones == ()
    with pytest.raises(KvmError, match="EINVAL"):
        ring.register(Zone(0, 1, 2))


IDT, GDT, HANDLER = 0x4000, 0x4200, 0x4300
# pusha; mov eax, dr6; out 0x20, eax; mov eax, [esp+32]; out 0x21, eax; mov eax, [esp+40]; out 0x22, eax; popa; iret
TELLS = "60" + "0f21f0" + "e720" + "8b442420" + "e721" + "8b442428" + "e722" + "61" + "cf"


async def own_breakpoint(registry, address, dr7, code):
    """A guest with a breakpoint of its own: its handler tells DR6, where it was, and the frame's flags to ports."""
    # mov eax, ADDRESS; mov dr0, eax; mov eax, DR7; mov dr7, eax; then the code
    code = f"b8{address.to_bytes(4, 'little').hex()}0f23c0b8{dr7.to_bytes(4, 'little').hex()}0f23f8{code}"
    machine = await made(registry, code + HLT)
    gate = (HANDLER | 8 << 16).to_bytes(4, "little") + (0x8E00).to_bytes(4, "little")
    segments = bytes.fromhex("0000000000000000" + "ffff0000009bcf00" + "ffff00000093cf00")
    for at_, data in ((IDT, gate * 32), (GDT, segments), (HANDLER, bytes.fromhex(TELLS))):
        machine.memory.write(machine.arena.base + at_, data)
    await machine.set_sregs(0, {"idt": {"base": IDT, "limit": 255}, "gdt": {"base": GDT, "limit": 23}})
    return machine


async def told(machine):
    """What the guest's handler said, up to HLT."""
    values = []
    while (answer := await machine.run(0))["exit_reason"] == "KVM_EXIT_IO":
        values.append(int.from_bytes(bytes.fromhex(answer["io"]["data"]), "little"))
    assert answer["exit_reason"] == "KVM_EXIT_HLT"
    return values


FIRST = CODE + 16  # of the code behind the setting of DR0 and DR7
RF = 1 << 16


async def test_a_guests_own_breakpoint_in_code_is_a_fault_that_it_gets_past(registry):
    machine = await own_breakpoint(registry, FIRST + 1, 0x401, "404340")  # inc eax; inc ebx; inc eax
    assert await told(machine) == [ACTIVE_LOW | 1, FIRST + 1, RF | 2]
    regs = await machine.get_regs(0)
    assert (regs["rax"], regs["rbx"], regs["rip"]) == (0x401 + 2, 1, FIRST + 4)


async def test_a_guests_own_breakpoint_on_data_is_a_trap_behind_the_access(registry):
    machine = await own_breakpoint(registry, PAGE, 0xD0401, "a1fe2f0000" + "a302300000" + "43")
    dr6, eip, flags = await told(machine)
    assert (dr6, eip, flags & RF) == (ACTIVE_LOW | 1, FIRST + 10, 0)
    assert (await machine.get_regs(0))["rbx"] == 1


async def test_a_breakpoint_that_is_not_enabled_is_none(registry):
    machine = await own_breakpoint(registry, FIRST, 0x700, "40")
    assert await told(machine) == []


async def test_a_debugger_takes_the_guests_breakpoints(registry):
    machine = await own_breakpoint(registry, FIRST + 1, 0x401, "404340")
    await machine.set_guest_debug(0, ENABLE | SINGLESTEP, NONE)
    seen = [await run(machine) for _ in range(6)]
    assert seen[-1] == at(FIRST + 1, 1, dr7="0x401")
