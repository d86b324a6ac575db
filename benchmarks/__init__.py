"""This package beside its peers, in one run. Start it with `make bench`."""
