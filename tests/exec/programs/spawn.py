"""Memory is shared again and again while other threads start processes, which open files before they are programs."""

import mmap
import subprocess
import threading

from kvm import HLT, Vcpu, Vm, address_of

CODE = bytes.fromhex("fe060080 f4 ebf9")  # inc byte [8000]; hlt; jmp
stop = threading.Event()
started = [0]


def spawns():
    while not stop.is_set():
        subprocess.run(["/bin/true"], stdout=subprocess.DEVNULL, check=True)
        started[0] += 1


threads = [threading.Thread(target=spawns) for _ in range(2)]
for thread in threads:
    thread.start()
vm = Vm()
text = mmap.mmap(-1, 0x2000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
text[0x1000 : 0x1000 + len(CODE)] = CODE
vm.region(0, 0, 0x2000, address_of(text))
vcpu = Vcpu(vm)
vcpu.start_at(0x1000)
kept = []
for round_ in range(40):
    memory = mmap.mmap(-1, 0x2000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[0x1000] = round_
    vm.region(1, 0x7000, 0x2000, address_of(memory))
    assert vcpu.run() == HLT
    assert memory[0x1000] == round_ + 1
    vm.region(1, 0x7000, 0, 0)
    kept.append(memory)
while started[0] < 5:
    pass
stop.set()
for thread in threads:
    thread.join()
print("done")
