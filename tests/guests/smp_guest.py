"""A guest of many CPUs: the boot CPU starts the others by INIT and SIPI, then an IPI goes round, ``rounds`` times.

Every CPU goes from real to long mode, enables its APIC and sleeps in HLT; each IPI (vector 0x40) is counted and sent on
to the next CPU. The boot CPU has a periodic timer (0x50) as well, and writes to ``DONE_PORT`` at the end.
"""

from __future__ import annotations

import struct

from kickstand.core.memslots import Region

SIZE = 0x40000
PML4, PDPT, PD_LOW, PD_HIGH, IDT, GDT, IDTR, CODE = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000, 0x6110, 0x8000
ALIVE, ROUNDS, TICKS, CPUS, LAST_ROUND, RECEIVED = 0x7000, 0x7004, 0x7008, 0x7010, 0x7014, 0x7100
RING, TICK = 0x8200, 0x8300  # handlers
DONE_PORT = 0x3F0

START = """
fa 31c0 8ed8 66 0f0116 0061                     cli; xor ax, ax; mov ds, ax; lgdt [0x6100]
66b820000000 0f22e0 66b800100000 0f22d8         mov cr4, 0x20 (PAE); mov cr3, 0x1000
66b9800000c0 0f32 660d00010000 0f30             efer |= LME
66b801000080 0f22c0 66ea390000000800            mov cr0, PG | PE; jmp 8:long
66b81000 8ed8 8ec0 8ed0 0f011c2510610000        long: ds, es, ss = 0x10; lidt [0x6110]
bb0000e0fe 8b4b20 c1e918                        mov ebx, 0xfee00000; mov ecx, [rbx + 0x20]; shr ecx, 24
89cc c1e40a 81c400040200                        mov esp, ecx; shl esp, 10; add esp, 0x20400
c783f0000000ff010000 f0ff042500700000           mov [rbx + 0xf0], 0x1ff; lock inc [0x7000]
85c9 7404 fb f4 ebfd                            test ecx, ecx; jz boot; sti; 1: hlt; jmp 1b
c7830003000000450c00 c7830003000008460c00       boot: INIT to all others; SIPI, page 8
f390 8b042510700000 39042500700000 75ee         2: pause; mov eax, [0x7010]; cmp [0x7000], eax; jne 2b
c783e00300000b000000 c7832003000050000200       divide by 1; periodic, vector 0x50
c7838003000040420f00                            a tick in 1,000,000 ns
c7831003000000000001 c7830003000040400000       the first IPI, to CPU 1
fb f4 fa 8b042514700000 39042504700000 72ed     3: sti; hlt; cli; mov eax, [0x7014]; cmp [0x7004], eax; jb 3b
c7838003000000000000 66baf003 ee f4 ebfd        no more ticks; mov dx, 0x3f0; out dx, al; 4: hlt; jmp 4b
"""
BOOT = "c7830003000000450c00"
AT_RING = """
50 51 8b4b20 c1e918 f0ff048d00710000            push rax; push rcx; ecx = id; lock inc [0x7100 + 4 * rcx]
85c9 7517 ff042504700000                        test ecx, ecx; jnz 5f; inc [0x7004]
8b042514700000 39042504700000 7320              mov eax, [0x7014]; cmp [0x7004], eax; jae 6f
ffc1 3b0c2510700000 7202 31c9 c1e118            5: inc ecx; cmp ecx, [0x7010]; jb 7f; xor ecx, ecx; 7: shl ecx, 24
898b10030000 c7830003000040400000               mov [rbx + 0x310], ecx; mov [rbx + 0x300], 0x4040
c783b000000000000000 59 58 48cf                 6: EOI; pop rcx; pop rax; iretq
"""
AT_TICK = "f0ff042508700000 c783b000000000000000 48cf   lock inc [0x7008]; EOI; iretq"


def _bytes(listing):
    """The hex digits at the beginning of each line; the code follows after three blanks."""
    return b"".join(bytes.fromhex(line.strip().partition("   ")[0]) for line in listing.strip().splitlines())


def image(cpus, rounds, boot=None):
    """Guest memory from address 0; ``boot`` is what the boot CPU does in place of starting the others."""
    memory = bytearray(SIZE)

    def put(address, data):
        memory[address : address + len(data)] = data

    put(PML4, struct.pack("<Q", PDPT | 3))
    put(PDPT, struct.pack("<4Q", PD_LOW | 3, 0, 0, PD_HIGH | 3))
    put(PD_LOW, struct.pack("<Q", 0x83))
    put(PD_HIGH + 8 * 0x1F7, struct.pack("<Q", 0xFEE00000 | 0x9B))
    put(GDT, struct.pack("<3Q", 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF))
    put(0x6100, struct.pack("<HI", 23, GDT))
    put(IDTR, struct.pack("<HQ", 0xFFF, IDT))
    for vector, handler in ((0x40, RING), (0x50, TICK)):
        put(IDT + 16 * vector, struct.pack("<HHHHII", handler, 8, 0x8E00, 0, 0, 0))
    start = _bytes(START if boot is None else START[: START.index(BOOT)] + boot.strip())
    long_mode = CODE + start.index(bytes.fromhex("66b810008ed8"))
    put(CODE, start.replace(bytes.fromhex("66ea39000000"), b"\x66\xea" + struct.pack("<I", long_mode)))
    put(RING, _bytes(AT_RING))
    put(TICK, _bytes(AT_TICK))
    put(CPUS, struct.pack("<II", cpus, rounds))
    return bytes(memory)


async def load(machine, cpus, rounds, boot=None):
    """Memory, and the boot CPU at its start; the others wait for INIT."""
    arena = machine.memory.allocate(SIZE)
    await machine.set_user_memory_region(Region(0, 0, 0, SIZE, arena.base))
    machine.memory.write(arena.base, image(cpus, rounds, boot))
    sregs = await machine.get_sregs(0)
    await machine.set_sregs(0, {"cs": {**sregs["cs"], "selector": CODE >> 4, "base": CODE}})
    await machine.set_regs(0, {"rip": 0, "rflags": 2})
    return arena


def counted(machine, arena, cpus):
    """IPIs that each CPU has received, rounds, ticks."""
    data = machine.memory.read(arena.base, SIZE)
    received = struct.unpack_from(f"<{cpus}I", data, RECEIVED)
    return list(received), *struct.unpack_from("<II", data, ROUNDS)
