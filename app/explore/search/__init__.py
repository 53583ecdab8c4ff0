"""How it is searched: states as numbers, reduction, properties, fair cycles, random schedules."""
