"""Guests that rewrite code they have executed (a kernel that patches itself): what is called next is what is there.

Nothing tells the engine: memory is written where it is executed, or at another address, by code on the same page or
on another one, between calls that the engine has made often enough to know the way.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field

import pytest

from kickstand.core.run.exits import HltExit
from kickstand.guests.x86.translated import nested_walk
from tests.guests.x86.machine import TABLES, Machine

SITES, SITE, PAGES = 24, 64, (0x3000, 0x4000)
STORE = 0xF00  # in each of the pages, and on one without sites: mov [rdi], rax; ret. COPY: rep movsb; ret
COPY = 0xF20
OTHER_PAGE = 0x5000
HELPER = OTHER_PAGE + 0x100  # add r12, 7; ret
POINTER = OTHER_PAGE + 0x200  # to it
SOURCE = 0x6000
DRIVER, DRIVER_END = 0xB000, 0xFF00
ALIAS = 0x200000  # the same memory again
MASK = (1 << 64) - 1


def rel(at, target):
    return struct.pack("<i", target - at - 4)


def variants(at):
    """(eight bytes for this address, what they add to R12): instructions of all lengths, stops among them."""
    helper, pointer = rel(at + 1, HELPER), rel(at + 2, POINTER)
    return [
        (b"\xff\x15" + pointer + b"\x66\x90", 7),  # call *pointer(%rip), as the kernel has it before it is patched
        (b"\xe8" + helper + b"\x90\x66\x90", 7),
        (bytes.fromhex("9c580f1f40006690"), 0),  # pushf; pop rax
        (bytes.fromhex("49ffc49090909090"), 1),  # inc r12
        (bytes.fromhex("4983c40b0f1f4000"), 11),  # add r12, 11
        (bytes.fromhex("4981c40d00000090"), 13),
        (bytes.fromhex("49ffc4fb49ffc490"), 2),  # with STI
        (bytes.fromhex("0fa249ffc40fa290"), 1),  # with CPUID
        (bytes.fromhex("49ffc4e44249ffc4"), 2),  # with IN
        (bytes.fromhex("0f1f8000000000" + "90"), 0),
    ]


@dataclass
class Program:
    """Straight code that calls sites and rewrites them, and what R12 is at its end."""

    choice: random.Random
    code: bytearray = field(default_factory=bytearray)
    source: bytearray = field(default_factory=bytearray)
    value: int = 0

    def __post_init__(self):
        self.sites = [page + index * SITE for page in PAGES for index in range(SITES)]
        self.held = {site: self.choice.choice(variants(site)) for site in self.sites}
        self.first = {site: code for site, (code, _) in self.held.items()}

    @property
    def at(self):
        return DRIVER + len(self.code)

    def call(self, target):
        self.code += b"\xe8" + rel(self.at + 1, target)

    def visit(self, site):
        self.call(site)
        self.code += bytes.fromhex("49c1c405")  # rol r12, 5
        added = self.value + self.held[site][1] & MASK
        self.value = (added << 5 | added >> 59) & MASK

    def rewrite(self, site):
        self.held[site] = code, _ = self.choice.choice(variants(site))
        address = site + self.choice.choice((0, 0, ALIAS))
        how = self.choice.choice((STORE, COPY, None))
        self.code += b"\xbf" + struct.pack("<I", address)  # mov edi, address
        if how == COPY:
            self.code += b"\xbe" + struct.pack("<I", SOURCE + len(self.source)) + bytes.fromhex("b908000000")
            self.source += code
        else:
            self.code += b"\x48\xb8" + code  # mov rax, code
        if how is None:
            self.code += bytes.fromhex("488907")  # mov [rdi], rax
        else:
            self.call(self.choice.choice((*PAGES, OTHER_PAGE)) + how)

    def make(self):
        some = self.choice.sample(self.sites, 6)
        while self.at < DRIVER_END - 200 and len(self.source) < 0xF00:
            for site in self.choice.choices(some, k=self.choice.randrange(1, 6)):
                self.visit(site)
            for site in self.choice.choices(some, k=self.choice.randrange(1, 4)):
                self.rewrite(site)
        self.code += b"\xf4"
        return self


@dataclass
class Loop(Program):
    """One page that goes round without leaving it, and rewrites itself: often with what is there already."""

    rounds: int = 100
    blocks: int = 12

    def make(self):
        self.start, at = PAGES[0], PAGES[0]
        order = self.choice.sample(range(1, SITES), self.blocks)
        self.sites = [at, *(at + index * SITE for index in order)]
        stores = {site: self.choice.choice(self.sites) for site in self.choice.sample(self.sites, 5)}
        self.first = {site: self.held[site][0] for site in self.sites}
        self.bodies = {}
        for site, following in zip(self.sites, [*self.sites[1:], None], strict=True):
            body = bytes.fromhex("49c1c405")  # rol r12, 5
            if site in stores:
                body += b"\x49\x8b\x85" + struct.pack("<i", 8 * list(stores).index(site))  # mov rax, [r13+..]
                body += b"\xbf" + struct.pack("<I", stores[site] + self.choice.choice((0, 0, ALIAS)))
                body += bytes.fromhex("488907")  # mov [rdi], rax
            if following is None:  # add r13, 40; dec r14; jne start; hlt
                body += bytes.fromhex("4983c52849ffce0f85")
            else:
                body += b"\xe9"
            at = site + 8 + len(body)
            self.bodies[site] = body + rel(at, following or self.start) + b"\xf4" * (following is None)
            self.end = at + 5
        order = [site for site in self.sites if site in stores]
        for _ in range(self.rounds):
            data = dict.fromkeys(stores, b"")
            for site in self.sites:
                added = self.value + self.held[site][1] & MASK
                self.value = (added << 5 | added >> 59) & MASK
                if site in stores:
                    if self.choice.random() < 0.1:
                        self.held[stores[site]] = self.choice.choice(variants(stores[site]))
                    data[site] = self.held[stores[site]][0]
            self.source += b"".join(data.values())
        return self


def loop_machine(loop, engine):
    machine = Machine("long64", b"", engine=engine, entry=loop.start, r12=0, r13=DRIVER, r14=loop.rounds)
    machine.poke(TABLES + 0x2008, struct.pack("<Q", 0xE3))  # ALIAS
    machine.poke(HELPER, "4983c407c3")
    machine.poke(POINTER, struct.pack("<Q", HELPER))
    machine.poke(DRIVER, bytes(loop.source))
    for site, code in loop.first.items():
        machine.poke(site, code + loop.bodies[site])
    return machine


def machine_for(program, engine):
    machine = Machine("long64", bytes(program.code), engine=engine, entry=DRIVER, r12=0)
    machine.poke(TABLES + 0x2008, struct.pack("<Q", 0xE3))  # ALIAS
    for page in (*PAGES, OTHER_PAGE):
        machine.poke(page + STORE, "488907c3")
        machine.poke(page + COPY, "f3a4c3")
    machine.poke(HELPER, "4983c407c3")
    machine.poke(POINTER, struct.pack("<Q", HELPER))
    machine.poke(SOURCE, bytes(program.source))
    for site, code in program.first.items():
        machine.poke(site, code + b"\xc3")
    return machine


def run(machine, choice, slices=(3, 50, 1000)):
    """In slices of these lengths; IN reads nothing."""
    exit = None
    for _ in range(100_000):
        if isinstance(exit, HltExit):
            return
        if machine.cpu.pending:
            exit = machine.cpu.complete(bytes([0]))
        else:
            exit = machine.cpu.run(0 if machine.cpu.mode == "fast" else choice.choice(slices))
    pytest.fail("no HLT")


@pytest.mark.parametrize("walk", [1, 0], ids=["virtual TLB", "own walk"])
@pytest.mark.parametrize("engine", ["precise", "fast"])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_called_is_what_was_written_last(engine, walk, seed, monkeypatch):
    monkeypatch.setattr(nested_walk, "NEEDED", walk)
    choice = random.Random(seed)
    program = Program(choice).make()
    machine = machine_for(program, engine)
    run(machine, choice)
    assert (hex(machine.reg("rip")), hex(machine.reg("r12"))) == (hex(program.at), hex(program.value))
    machine.cpu.close()


@pytest.mark.parametrize("walk", [1, 0], ids=["virtual TLB", "own walk"])
@pytest.mark.parametrize("engine", ["precise", "fast"])
@pytest.mark.parametrize("seed", range(4))
def test_a_page_that_rewrites_itself_goes_on_with_what_it_wrote(engine, walk, seed, monkeypatch):
    monkeypatch.setattr(nested_walk, "NEEDED", walk)
    choice = random.Random(seed)
    loop = Loop(choice).make()
    machine = loop_machine(loop, engine)
    run(machine, choice)
    assert (hex(machine.reg("rip")), hex(machine.reg("r12"))) == (hex(loop.end), hex(loop.value))
    machine.cpu.close()


@pytest.mark.parametrize("walk", [1, 0], ids=["virtual TLB", "own walk"])
@pytest.mark.parametrize("engine", ["precise", "fast"])
@pytest.mark.parametrize("every", [1, 8, 64])
def test_a_loop_that_stays_in_its_page_sees_an_operand_that_it_rarely_changes(engine, walk, every, monkeypatch):
    monkeypatch.setattr(nested_walk, "NEEDED", walk)
    start, rounds = 0x3000, 512
    changed = start + 32
    # mov [0x3800], al; mov ecx, r14d; shr ecx, ..; and ecx, 1; mov [changed + 3], cl
    code = bytes.fromhex("880425003800004489f1c1e9") + bytes([every.bit_length() - 1])
    code += bytes.fromhex("83e101880c25") + struct.pack("<I", changed + 3)
    code += bytes.fromhex("eb00" + "eb00").ljust(changed - start - len(code), b"\x90")
    code += bytes.fromhex("4983c400" + "eb00" + "49ffce" + "0f85")  # add r12, 0; dec r14; jne start; hlt
    code += rel(start + len(code), start) + b"\xf4"
    machine = Machine("long64", code, engine=engine, entry=start, r12=0, r14=rounds)
    run(machine, random.Random(1))
    assert machine.reg("r12") == rounds // 2
    machine.cpu.close()
