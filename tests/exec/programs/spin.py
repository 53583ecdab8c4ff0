"""A vCPU that never leaves KVM_RUN by itself; says when it is about to enter."""

import mmap
import sys

from kvm import Vcpu, Vm, address_of

vm = Vm()
ram = mmap.mmap(-1, 0x2000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
ram[0x1000:0x1002] = b"\xeb\xfe"  # jmp $
vm.region(0, 0, 0x2000, address_of(ram))
vcpu = Vcpu(vm)
vcpu.start_at(0x1000)
print("entering", flush=True)
while True:
    try:
        vcpu.run()
    except InterruptedError:  # a signal that did nothing else, as one that stops the program
        continue
    except OSError as error:
        sys.exit(error.errno)
