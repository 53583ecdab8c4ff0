"""The ioctls of VM and vCPU descriptors, by topic: each file is a base class of ``Vm`` or ``Vcpu``."""
