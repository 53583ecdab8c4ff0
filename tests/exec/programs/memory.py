"""One guest, several kinds of memory behind its slot: it adds 1 to the byte at 0x8000 and halts, again and again."""

import mmap
import os
import tempfile

from kvm import HLT, Vcpu, Vm, address_of

CODE = bytes.fromhex("fe060080 f4 ebf9")  # inc byte [8000]; hlt; jmp
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

vm = Vm()
text = mmap.mmap(-1, 0x2000, PRIVATE)
text[0x1000 : 0x1000 + len(CODE)] = CODE
vm.region(0, 0, 0x2000, address_of(text))
vcpu = Vcpu(vm)
vcpu.start_at(0x1000)


def check(name, memory, offset=0x1000):
    vm.region(1, 0x7000, 0x2000, address_of(memory) + offset - 0x1000)
    exits = [vcpu.run() == HLT, vcpu.run() == HLT]
    print(name, exits, memory[offset])
    vm.region(1, 0x7000, 0, 0)


area = mmap.mmap(-1, 0x2000, PRIVATE)
area[0x1000] = 5
check("private", area)
area.madvise(mmap.MADV_DONTNEED)
print("discarded", area[0x1000])
check("again", area)
shared = mmap.mmap(-1, 0x2000, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
shared[0x1000] = 7
check("shared", shared)
with tempfile.TemporaryFile() as file:
    file.write(bytes([9]) * 0x4000)
    file.flush()
    check("private file", mmap.mmap(file.fileno(), 0x4000, mmap.MAP_PRIVATE), 0x3000)
    check("shared file", mmap.mmap(file.fileno(), 0x4000, mmap.MAP_SHARED), 0x3000)
    print("the file holds", os.pread(file.fileno(), 1, 0x3000)[0])
large = mmap.mmap(-1, 1 << 30, PRIVATE)
large[(1 << 30) - 0x1000] = 11
check("the end of a GiB", large, (1 << 30) - 0x1000)

vm.region(1, 0x7000, 0x2000, address_of(area))
child = os.fork()
if not child:
    os._exit(0)
os.waitpid(child, 0)
area[0x1000] = 20
vcpu.run()
print("after a fork", area[0x1000])
