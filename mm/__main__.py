"""``python -m mm`` is ``mm``."""

from __future__ import annotations

import sys

from mm.cli import main

sys.exit(main())
