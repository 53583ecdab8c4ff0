"""``kickstand memory``: host memory, slots, transactions, dirty logs."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from app.commands.common import DEFAULT_URL, AsJson, Token, Uds, Url, VmName, connected, number, show

app = typer.Typer(no_args_is_help=True, help="Memory: host memory, slots, transactions, dirty logs.")


@app.command()
def allocate(
    size: Annotated[str, typer.Argument(help="Bytes.")],
    name: Annotated[str | None, typer.Option(help="A name of your own.")] = None,
    vm: VmName = "default",
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
    as_json: AsJson = False,
) -> None:
    """Allocate host memory: the VMM's mmap."""
    with connected(url, token, uds, vm) as client:
        show(client.allocate(number(size), name), as_json=as_json)


@app.command("list")
def list_regions(
    vm: VmName = "default", url: Url = DEFAULT_URL, token: Token = None, uds: Uds = None, as_json: AsJson = False
) -> None:
    """The memory slots."""
    with connected(url, token, uds, vm) as client:
        answer = client.regions()
    if as_json:
        show(answer, as_json=True)
        return
    for region in answer["regions"]:
        print(
            f"slot {region['slot']:>5}  gpa {region['guest_phys_addr']:>18}  size {region['memory_size']:#12x}"
            f"  hva {region['userspace_addr']:>18}  flags {region['flags']}"
        )


@app.command("set")
def set_region(
    slot: Annotated[int, typer.Argument(help="The slot's number.")],
    guest_phys_addr: Annotated[str, typer.Argument(help="Where the guest sees it.")],
    memory_size: Annotated[str, typer.Argument(help="Bytes; 0 deletes.")],
    userspace_addr: Annotated[str, typer.Argument(help="The host memory behind it.")],
    flags: Annotated[int, typer.Option(help="1 log dirty pages, 2 readonly.")] = 0,
    vm: VmName = "default",
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
    as_json: AsJson = False,
) -> None:
    """KVM_SET_USER_MEMORY_REGION."""
    with connected(url, token, uds, vm) as client:
        answer = client.set_region(
            slot, number(guest_phys_addr), number(memory_size), hex(number(userspace_addr)), flags
        )
        show(answer, as_json=as_json)


@app.command()
def delete(slot: int, vm: VmName = "default", url: Url = DEFAULT_URL, token: Token = None, uds: Uds = None) -> None:
    """Delete one slot."""
    with connected(url, token, uds, vm) as client:
        client.delete_region(slot)


@app.command()
def transaction(
    operations: Annotated[str, typer.Argument(help="The regions as a JSON list, or - for standard input.")],
    protect: Annotated[str | None, typer.Option(help="kick, list or none; what the variant means otherwise.")] = None,
    vm: VmName = "default",
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
    as_json: AsJson = False,
) -> None:
    """Several slot changes, all or none."""
    text = sys.stdin.read() if operations == "-" else operations
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="OPERATIONS") from None
    with connected(url, token, uds, vm) as client:
        show(client.memory_transaction(parsed, protect), as_json=as_json)


@app.command("dirty-log")
def dirty_log(
    slot: int,
    vm: VmName = "default",
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
    as_json: AsJson = False,
) -> None:
    """KVM_GET_DIRTY_LOG: the pages written since the last call."""
    with connected(url, token, uds, vm) as client:
        show(client.dirty_log(slot), as_json=as_json)


@app.command()
def read(
    userspace_addr: str,
    length: int,
    vm: VmName = "default",
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
) -> None:
    """Print host memory as hex."""
    with connected(url, token, uds, vm) as client:
        print(client.read_host(hex(number(userspace_addr)), length).hex())


@app.command()
def write(
    userspace_addr: str,
    data: Annotated[str, typer.Argument(help="Bytes as hex.")],
    vm: VmName = "default",
    url: Url = DEFAULT_URL,
    token: Token = None,
    uds: Uds = None,
) -> None:
    """Write host memory."""
    try:
        raw = bytes.fromhex(data)
    except ValueError:
        raise typer.BadParameter(f"{data!r} is not hex", param_hint="DATA") from None
    with connected(url, token, uds, vm) as client:
        client.write_host(hex(number(userspace_addr)), raw)
