"""A guest's writes to a port are noted in the ring of coalesced writes, which the program empties at each exit."""

import fcntl
import mmap
import struct

from kvm import HLT, Vcpu, Vm, address_of

REGISTER, RING, ENTRY = 0x4010AE67, 2 * mmap.PAGESIZE, 24
CODE = bytes.fromhex("b303 b96400 b07a e610 e2fc e420 fecb 75f1 f4")  # three times: a hundred OUTs, one IN

vm = Vm()
ram = mmap.mmap(-1, 0x8000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
ram[0x1000 : 0x1000 + len(CODE)] = CODE
vm.region(0, 0, 0x8000, address_of(ram))
vcpu = Vcpu(vm)
fcntl.ioctl(vm.fd, REGISTER, struct.pack("=QII", 0x10, 1, 1))
vcpu.start_at(0x1000)
taken, exits = [], 0
while vcpu.run() != HLT:
    exits += 1
    first, last = struct.unpack_from("=II", vcpu.page, RING)
    while first != last:
        taken.append(vcpu.page[RING + 8 + first * ENTRY + 16])
        first = (first + 1) % ((mmap.PAGESIZE - 8) // ENTRY)
    struct.pack_into("=I", vcpu.page, RING, first)
print(f"{len(taken)} writes of {set(taken)} beside {exits} exits")
