"""Makes the helpers in this folder importable from every test, and gives each test process one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run on all cores already, one process each
