"""How the shipped coroutines become a transition system: operations, automata, stops, components."""
