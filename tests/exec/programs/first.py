"""What ``first.c`` does, with ctypes and mmap."""

import fcntl
import mmap

from kvm import CODE, GET_API_VERSION, Vcpu, Vm, address_of, kvm, to_halt

print("version", fcntl.ioctl(kvm, GET_API_VERSION, 0))
vm = Vm()
ram = mmap.mmap(-1, 0x8000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
ram[0x1000 : 0x1000 + len(CODE)] = CODE
vm.region(0, 0, 0x8000, address_of(ram))
vcpu = Vcpu(vm)
vcpu.start_at(0x1000, rax=2, rbx=3)
to_halt(vcpu)
print(
    f"hlt rip {vcpu.registers()['rip']:x}, memory {ram[0x2000]:x} {ram[0x2001]:x} {ram[0x2002]:x}, if {vcpu.page[13]}"
)
