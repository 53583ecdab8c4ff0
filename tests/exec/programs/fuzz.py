"""Random ioctls with random pointers from several threads; neither this program nor its supervisor may suffer.

Arguments: how many, a seed. What the program keeps beside the buffers it offers must stay as it was, and afterwards a
VM must still work.
"""

import ctypes
import fcntl
import mmap
import os
import random
import struct
import sys
import threading

from kvm import CODE, CREATE_VCPU, Vcpu, Vm, address_of, kvm, to_halt

COUNT, SEED = int(sys.argv[1]), int(sys.argv[2])
SIZES = [0, 1, 2, 4, 8, 16, 24, 32, 64, 72, 104, 144, 160, 312, 320, 416, 1024, 4096, 8192, 16383]
libc = ctypes.CDLL(None, use_errno=True)
libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]

canary = mmap.mmap(-1, 0x10000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
pattern = bytes(random.Random(SEED).randrange(256) for _ in range(0x1000)) * 16
canary[:] = pattern
offered = mmap.mmap(-1, 0x10000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # what the kernel may write to
lone = mmap.mmap(-1, 0x2000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
libc.mprotect(ctypes.c_void_p(address_of(lone) + 0x1000), 0x1000, 0)

vm = Vm()
vm.region(0, 0, 0x8000, address_of(offered))
vcpus = [Vcpu(vm, 0), Vcpu(vm, 1)]
for vcpu in vcpus:
    vcpu.page[1] = 1  # immediate_exit: nobody is to wait here
fds = [kvm, vm.fd, *(vcpu.fd for vcpu in vcpus), os.memfd_create("foreign")]


def a_request(rng):
    number = rng.randrange(256)
    return rng.randrange(4) << 30 | rng.choice(SIZES) << 16 | 0xAE00 | number


REAL = [0x4020AE46, 0xAE80, 0x4090AE82, 0x8090AE81, 0x4138AE84, 0x8138AE83, 0x4010AE42, 0x40A0AE49, 0xAE41, 0x4004AE99,
        0x4004AE86, 0xAED2, 0xAED3, 0x4068AEA3, 0xC018AEC0, 0xC008AE88, 0x4008AE90, 0xC008AE05, 0x4004AE8B]  # fmt: skip


def an_argument(rng):
    base = address_of(offered)
    return rng.choice(
        [0, 1, rng.randrange(1 << 12), rng.getrandbits(64), (1 << 64) - 1, (1 << 47) - 8, base + rng.randrange(0xF000),
         base + rng.randrange(0xF0) * 0x100, address_of(lone) + 0x1000 - rng.randrange(64)]
    )  # fmt: skip


def attack(seed, count):
    rng = random.Random(seed)
    for _ in range(count):
        place = rng.randrange(0xF000)
        if rng.random() < 0.7:
            value = rng.choice(
                [rng.getrandbits(64), rng.randrange(1 << 16), address_of(offered) + rng.randrange(16) * 4096]
            )
            struct.pack_into("=Q", offered, place, value)
        request = rng.choice(REAL) if rng.random() < 0.5 else a_request(rng)
        if request & 0xFF == 0x01:
            continue  # VMs and what they take are another test's
        result = libc.ioctl(rng.choice(fds), request, an_argument(rng))
        if result > 2 and request & 0xFF == CREATE_VCPU & 0xFF:
            os.close(result)


threads = [threading.Thread(target=attack, args=(SEED + n, COUNT // 3)) for n in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert canary[:] == pattern, "memory that was never offered has changed"
os.close(vm.fd)
again = Vm()
ram = mmap.mmap(-1, 0x8000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
ram[0x1000 : 0x1000 + len(CODE)] = CODE
again.region(0, 0, 0x8000, address_of(ram))
last = Vcpu(again)
last.start_at(0x1000, rax=2, rbx=3)
to_halt(last, lambda _: None)
assert bytes(ram[0x2000:0x2003]) == bytes([5, 0x77, 0x5A])
assert fcntl.ioctl(kvm, 0xAE00, 0) == 12
print("survived")
