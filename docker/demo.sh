#!/bin/sh
# The story of the demo with curl alone: guests read m2 while m1 and m2 are merged and split, without and with a kick.
#
#     kickstand serve --ephemeral      # in another terminal
#     docker/demo.sh [URL]             # http://127.0.0.1:8000, or what KICKSTAND_URL says
#
# KICKSTAND_TOKEN_FILE is sent as the bearer token; ROUNDS is how often it merges, 20 by default. Ends with
# status 1 if a guest saw a hole in spite of the kick.
set -eu

url=${1:-${KICKSTAND_URL:-http://127.0.0.1:8000}}
vm=demo-$$
rounds=${ROUNDS:-20}

# call METHOD PATH [BODY]: one call on the VM; prints the answer, fails with the server's own words.
call() {
    set -- "$@" "${3-}"
    answer=$(printf '%s' "$3" | curl -sS -X "$1" "$url$2" -H 'Content-Type: application/json' --data-binary @- \
        -w '\n%{http_code}' ${KICKSTAND_TOKEN_FILE:+-H "Authorization: Bearer $(cat "$KICKSTAND_TOKEN_FILE")"})
    case ${answer##*
} in
        2*) printf '%s\n' "$answer" | sed '$d' ;;
        *) echo "$1 $2: $answer" >&2; return 1 ;;
    esac
}

# spurious: how many reads left as MMIO, although every address is RAM; all vCPUs together.
spurious() {
    call GET "/vms/$vm/vcpu" | grep -o '"mmio":[0-9]*' | awk -F: '{ sum += $2 } END { print sum + 0 }'
}

# region SLOT GPA SIZE HVA: one operation of a memory transaction; size 0 deletes.
region() {
    printf '{"slot": %s, "flags": 0, "guest_phys_addr": "%s", "memory_size": %s, "userspace_addr": "%s"}' "$@"
}

# merge_and_split PROTECT: as often as ROUNDS says; DELETE, DELETE, CREATE, and DELETE, CREATE, CREATE.
merge_and_split() {
    round=0
    while [ "$round" -lt "$rounds" ]; do
        merge="$(region 1 0x200000 0 "$m1"), $(region 2 0x201000 0 "$m2"), $(region 1 0x200000 8192 "$m1")"
        split="$(region 1 0x200000 0 "$m1"), $(region 1 0x200000 4096 "$m1"), $(region 2 0x201000 4096 "$m2")"
        for operations in "$merge" "$split"; do
            call POST "/vms/$vm/memory-transaction" "{\"protect\": \"$1\", \"operations\": [$operations]}" >/dev/null
        done
        round=$((round + 1))
    done
}

call POST /vms "{\"id\": \"$vm\", \"vcpus\": 2, \"variant\": \"sticky\"}" >/dev/null
trap 'call DELETE "/vms/$vm" >/dev/null' EXIT

memory=$(call POST "/vms/$vm/host-memory" '{"size": 8192}' | sed 's/.*"userspace_addr": *"\(0x[0-9a-f]*\)".*/\1/')
m1=$memory
m2=$(printf '0x%x' $((memory + 4096)))
call POST "/vms/$vm/memory-transaction" \
    "{\"operations\": [$(region 1 0x200000 4096 "$m1"), $(region 2 0x201000 4096 "$m2")]}" >/dev/null
for vcpu in 0 1; do
    call PUT "/vms/$vm/vcpu/$vcpu/program" '[["read", "0x201000", 4]]' >/dev/null
    call POST "/vms/$vm/vcpu/$vcpu/start" '{"behaviour": "careless"}' >/dev/null
done

echo "Two guests read m2 in a loop; m1 and m2 are merged and split $rounds times."
merge_and_split none
without=$(spurious)
echo "without a kick:  $without reads of RAM left as MMIO"
merge_and_split kick
with=$(($(spurious) - without))
echo "inside a kick:   $with"
[ "$with" -eq 0 ]
