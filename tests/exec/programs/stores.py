"""While much memory becomes a guest's, other threads store into it between calls: no store is lost."""

import fcntl
import mmap
import os
import threading

from kvm import GET_API_VERSION, HLT, Vcpu, Vm, address_of, kvm

SIZE, ROUNDS, PAGE = 24 << 20, 6, 4096
CODE = bytes.fromhex("fe060080 f4 ebf9")  # inc byte [8000]; hlt; jmp
stop = threading.Event()
memory = None
stores = [{}, {}]


def store(mine):
    def call():
        if mine:
            fcntl.ioctl(kvm, GET_API_VERSION, 0)
        else:
            os.close(os.open("/dev/null", os.O_RDONLY))

    at = 0
    while not stop.is_set():
        call()
        ram, seen, at = memory, stores[mine], at + 7919
        place = at * PAGE % SIZE + 8 + mine
        ram[place] = seen[ram, place] = at % 255 + 1
        call()


vm = Vm()
text = mmap.mmap(-1, 0x2000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
text[0x1000 : 0x1000 + len(CODE)] = CODE
vm.region(0, 0, 0x2000, address_of(text))
vcpu = Vcpu(vm)
vcpu.start_at(0x1000)
threads = []
for round_ in range(ROUNDS):
    memory = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(b"\x01" * SIZE)
    if not threads:
        threads = [threading.Thread(target=store, args=[mine]) for mine in range(2)]
        for thread in threads:
            thread.start()
    vm.region(1, 0x7000, SIZE, address_of(memory))
    memory[0x1000] = round_
    assert vcpu.run() == HLT
    assert memory[0x1000] == round_ + 1
    vm.region(1, 0x7000, 0, 0)
stop.set()
for thread in threads:
    thread.join()
assert all(len(seen) > ROUNDS for seen in stores)
lost = sum(ram[place] != value for seen in stores for (ram, place), value in seen.items())
print("lost", lost)
