#!/bin/sh
# Two plus two on a real x86 guest, by curl alone. Needs: kickstand serve --engine x86 --ephemeral
set -eu
url=${KICKSTAND_URL:-http://localhost:8000}
json='Content-Type: application/json'

# mov dx, 0x3f8; add al, bl; add al, '0'; out dx, al; hlt
code='\272\370\003\000\330\004\060\356\364'

memory=$(curl -sfX POST "$url/vm/host-memory" -H "$json" -d '{"size": 4096}')
at=$(printf '%s' "$memory" | sed 's/.*"userspace_addr":"\([^"]*\)".*/\1/')
curl -sfX PUT "$url/vm/memory-regions/0" -H "$json" \
    -d "{\"guest_phys_addr\": \"0x1000\", \"memory_size\": 4096, \"userspace_addr\": \"$at\"}" >/dev/null
printf "$code" | curl -sfX PUT "$url/vm/host-memory/$at" -H 'Content-Type: application/octet-stream' --data-binary @-
curl -sfX PUT "$url/vcpu/0/sregs" -H "$json" -d '{"cs": {"base": 0, "selector": 0}}' >/dev/null
curl -sfX PUT "$url/vcpu/0/regs" -H "$json" -d '{"rip": "0x1000", "rax": 2, "rbx": 2}' >/dev/null
curl -sfX POST "$url/vcpu/0/run"  # KVM_EXIT_IO, and its data is 34: "4"
curl -sfX POST "$url/vcpu/0/run"  # KVM_EXIT_HLT
