"""What an errno means here, and what to do: the pages that the ``type`` of a problem leads to."""

from __future__ import annotations

import errno
import os
from html import escape

from kickstand.api.edge.problems import RETRYABLE, STATUS
from kickstand.core.errors import errno_name

MEANS: dict[int, tuple[str, str]] = {
    errno.EPERM: (
        "The call is not allowed on this server: POST /reset without --allow-reset, for example.",
        "Start the server with the option that the detail names.",
    ),
    errno.EACCES: (
        "The request is not let in: no token, a Host that is not this server's, or a page of another site as origin.",
        "Send Authorization: Bearer TOKEN, open the address that the server printed, or allow the name (--allow-host).",
    ),
    errno.ENOENT: (
        "There is no such path, vCPU, slot or exploration.",
        "List what there is: GET /vcpu, /vm/memory-regions, /explorations; /docs has every path.",
    ),
    errno.ENODEV: (
        "There is no virtual machine of that name.",
        "GET /vms lists them, POST /vms makes one. /vm and /vcpu are the VM named default.",
    ),
    errno.ENXIO: (
        "The VM has no in-kernel interrupt controllers, or has them where the call needs that it has none.",
        "POST /vm/irqchip before the first vCPU, or create the VM with irqchip true.",
    ),
    errno.EEXIST: (
        "It is there already: a VM, vCPU or controller of that id, or a slot that overlaps another.",
        "Choose another id or address, or delete what is there first.",
    ),
    errno.EBUSY: (
        "It is being used: the vCPU is in KVM_RUN and nowait was asked for, or its VMM thread runs already.",
        "Wait, POST /vcpu/{id}/stop, or leave nowait out.",
    ),
    errno.EIO: (
        "The VM was destroyed while the call waited, or the server is shutting down.",
        "Create the VM again; calls that were answered before have happened.",
    ),
    errno.E2BIG: (
        "The request is larger than a limit of this server: its body, a list in it, or the answer that it asks for.",
        "Send it in parts. The detail names the limit; GET /kvm has all of them.",
    ),
    errno.EINVAL: (
        "A value breaks a rule, as the ioctl or the schema has it. Nothing has changed.",
        "Correct what errors names: each member has the JSON pointer of a field, and the rule.",
    ),
    errno.EFAULT: (
        "An address is not backed: host memory that was never allocated, or that ends before the range does.",
        "POST /vm/host-memory first, and stay within size bytes of its userspace_addr.",
    ),
    errno.ENOTTY: (
        "The path or the engine does not take this call: a method that is not allowed, MSRs of a script guest.",
        "The header Allow names the methods of a path; an engine x86 VM has CPUID and MSRs.",
    ),
    errno.EOPNOTSUPP: (
        "This cannot be done here: a snapshot of the real /dev/kvm, or an engine that is not available.",
        "kickstand doctor says what works on this machine, GET /kvm why an engine does not.",
    ),
    errno.EAGAIN: (
        "The server takes no more of this now: too many parked runs, streams, connections or jobs, or it stops.",
        "Try again after the seconds in Retry-After, or end some of what is under way.",
    ),
    errno.ETIMEDOUT: (
        "A vCPU did not leave KVM_RUN within timeout_ms (the kick is taken back), or the request came too slowly.",
        "The member vcpus lists who still holds the read side; GET /vm/locks shows who blocks whom.",
    ),
    errno.ENOSPC: (
        "There is no more room: of VMs, or on the disk of the state directory.",
        "DELETE a VM, or free the disk; what was answered is kept.",
    ),
    errno.EROFS: ("The state directory cannot be written.", "Mount it writable, or serve another by --state."),
    errno.ENOMEM: (
        "Host memory or vCPUs are at the server's limit, or the machine has no memory left.",
        "Delete a VM, or allocate less; GET /kvm has the limits.",
    ),
    errno.EMFILE: ("The server has no file descriptors left.", "Close streams and connections, or raise ulimit -n."),
    errno.ENFILE: ("The machine has no file descriptors left.", "Close what is open, or raise fs.file-max."),
    errno.EINTR: (
        "A signal, a kick or immediate_exit ended KVM_RUN. That is an ordinary answer, with status 200.",
        "After a kick wait for the resume, then run again; cause says which it was.",
    ),
    errno.ENOTRECOVERABLE: (
        "Something is wrong with the server itself.",
        "Its log has the request under the id in instance: please report it.",
    ),
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="stylesheet" href="/static/pages.css">
</head>
<body>
<main>
<p><a href="/docs">API</a> <a href="/problems">All errnos</a></p>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""


def known() -> list[int]:
    """The errnos that have a page, by name."""
    return sorted(MEANS, key=errno_name)


def number_of(name: str) -> int | None:
    """The errno of a page's name (``einval``); None: no errno is called so."""
    found = {text.lower(): number for number, text in errno.errorcode.items()}
    found |= {errno_name(number).lower(): number for number in MEANS}
    return found.get(name.lower())


def page(code: int) -> str:
    """The page of one errno."""
    name, fault = errno_name(code), os.strerror(code)
    means, advice = MEANS.get(code, (f"The kernel's own: {fault}.", "man 2 ioctl and the kernel's documentation tell."))
    again = "The same request may succeed later." if code in RETRYABLE else "The same request will fail again."
    rows = (
        ("Means", means),
        ("What to do", advice),
        ("Status", f"{STATUS.get(code, 500)}. {again}"),
        ("Number", f"{code} on Linux x86-64: {fault}"),
    )
    body = "".join(f"<dt>{head}</dt><dd>{escape(text)}</dd>\n" for head, text in rows)
    return _PAGE.format(title=escape(name), body=f"<dl>\n{body}</dl>")


def index() -> str:
    """The page that lists all of them."""
    rows = "".join(
        f'<tr><th scope="row"><a href="/problems/{errno_name(code).lower()}">{errno_name(code)}</a></th>'
        f"<td>{STATUS.get(code, 500)}</td><td>{escape(MEANS[code][0])}</td></tr>\n"
        for code in known()
    )
    head = '<tr><th scope="col">Errno</th><th scope="col">Status</th><th scope="col">Means</th></tr>'
    return _PAGE.format(title="Errnos", body=f"<table>\n<thead>{head}</thead>\n<tbody>\n{rows}</tbody>\n</table>")
