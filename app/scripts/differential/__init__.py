"""The differential fuzzer: generated scripts, played on the emulator and on the real /dev/kvm, must be answered alike.

``python -m kickstand.scripts.differential --count 2000`` plays each seed on the emulator as it is made and then on the
device; with ``--mutate FOLDER`` it changes something in one of the scripts there instead. A difference is shrunk to the
shortest script before it is shown, and written as a file that ``kickstand replay --against kvm`` plays.

``generate`` and ``barrage`` tell stories (``story``) of instructions (``code``: the narrow table in ``encodings``, the
wide one in ``wide``, ``opcodes`` and ``system_opcodes``), ``mutate`` changes recorded ones, ``both`` plays them on both
sides, ``quirks`` explains what is known to differ, ``shrink`` makes a difference short, ``campaign`` takes many seeds.
"""
