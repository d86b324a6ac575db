"""Files that were valid once, changed at random, for every reader.

A reader may load a file or refuse it: in one line that names it, in bounded
time and memory, with no file touched and no weight changed. `make fuzz` tries
new files for an hour; tests/test_fuzz.py tries the same ones each time, and
what is in `corpus/`.
"""
