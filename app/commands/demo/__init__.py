"""``kickstand demo``: the problem of the mail and each cure, on live guests, over HTTP.

Guests read m2 in a loop while the VMM merges m1 and m2 and splits them again: DELETE, DELETE, CREATE. A
read in between sees a hole and leaves as MMIO, although the address is RAM before and after. Userspace is
careless: after EINTR it calls KVM_RUN again at once, so that only the protection itself keeps vCPUs out.
"""

from kickstand.commands.demo.process import server

__all__ = ["server"]
