"""The real /dev/kvm behind the core's own objects.

``vm.DeviceVm`` and ``vcpu.DeviceVcpu`` are the core's ``Vm`` and ``Vcpu`` with the kernel in the place of the
emulated one; what a VMM does in userspace around its ioctls (the accel-blocker) is the core's code, unchanged.
``device`` issues ioctls, ``page`` is the page a vCPU shares with the kernel, ``thread`` the OS thread that is
inside KVM_RUN, ``addresses`` keeps this process's addresses away from users and guests.
"""
