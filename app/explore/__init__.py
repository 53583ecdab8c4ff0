"""The explorer: every interleaving of the shipped protocol code, searched by states.

**Rooms**, each knowing only those above it in this list (a contract in pyproject.toml):

* ``world``: what is explored. A scenario, a variant and a behaviour (a ``Cell``) become objects and threads, the same
  for the search and for the replay; ghosts remember beside the real objects what only an observer knows.
* ``learn``: how coroutines become a transition system. Proxies turn operations into *traps*; a thread's automaton is
  learnt edge by edge; what only one thread can see is hidden in its strides; a global state is a tuple of numbers.
* ``search``: tables of those numbers, breadth first, a level at a time; partial order reduction; properties on the
  way (flags), afterwards on the states found (EINTR in a row, stretches, wake-ups) and on their cycles (fairness).
* ``evidence``: the way to a violation, its operations, columns, a token, and the replay on real asyncio tasks.

On top: ``decide`` (one cell), ``question`` and ``matrix`` (many), ``jobs``, ``command``, ``reports``, ``crosscheck``.

**Theory.** Core coroutines touch shared state only in atomic operations, and an operation is a function of the states
of its objects. So a thread is a deterministic automaton whose letters are the answers it gets, and it goes on alike
from two moments with the same await chain: per frame the code, the instruction, the live locals, the value stack
(``automata``, ``live_locals``). The product of these automata with the objects is finite as long as nobody counts
without end; a search that comes to its end has seen all runs, unbounded loops included, because loops close on states.
That is what ``holds`` says, and only that. Liveness is a search for fair cycles (Emerson and Lei) in the stored graph.

**Invariants**, on which ``holds`` rests:

* Nothing that differs between two runs is read except through an operation: no clock, no randomness, no plain attribute
  that changes (``plain`` refuses what it sees of these).
* What is hidden changes nothing that another thread or a property can see: an operation on private objects, or a silent
  one, which is looked up in every known state and looked up again when a state is new (``Renew``).
* Reduction draws its conclusions from what has been learnt, and the search starts over when more has been learnt and
  the conclusions differ (``Outdated``). Properties that relate threads count as objects that both sides touch.
* Everything that decides is watched by reference (``observe``, ``observer``): a renamed operation is a type error.
* Every counterexample is performed again by real tasks on real objects and judged afresh (``replay``, ``judge``). An
  explorer that is wrong in this direction says so by ``ReplayError``; in the other direction stand the comparisons with
  an unreduced search (``crosscheck``), with SPIN (``benchmarks``), and planted mutations (``tests/explore``).

**What would break it on a new CPython.** Only ``learn/automata.py`` and ``learn/live_locals.py`` look inside frames:
``cr_await``, ``f_lasti``, ``f_locals``, the order in which ``gc.get_referents`` lists a frame's locals and stack, the
names of the bytecode's loads, stores and jumps, and the exception table. A layout that is not known makes states
larger, never equal; a load that is not recognised keeps a local alive. ``tests/explore/search/test_learn.py`` checks
both on small coroutines: run it first.
"""
