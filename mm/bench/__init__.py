"""The benchmark: mm beside its peers in one run, what limits the machine sets, and what reduced precision costs."""
