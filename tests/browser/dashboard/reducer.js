/* Makes a store of one vCPU in the guest and one slot at 0x1000, applies events after number 5, and says what came of it. */
async (events) => {
  const { Store } = await import("/dashboard/model/store.js");
  const store = new Store();
  store.snapshot([{
    id: "v", variant: "sticky", engine: "script", mode: "precise", irqchip: false, kicked: false, holds: 0,
    memory_regions: [{ slot: 1, flags: 0, guest_phys_addr: "0x1000", memory_size: 4096, userspace_addr: "0x7f0000000000" }],
    vcpus: [{ id: 0, state: "guest", mp_state: "RUNNABLE", requests: [], thread: null, exit_reason: "", counters: {} }],
  }], "e", 5, 0);
  const fits = store.apply(events.map(([seq, event, vcpu, more]) => ({ id: `e-${seq}`, event, data: { seq, vm: "v", vcpu, t_ns: seq * 1000, ...more } })));
  const vm = store.vms.get("v");
  return { fits, state: vm.state[0], torn: vm.torn, kicked: vm.kicked };
}
