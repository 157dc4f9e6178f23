"""`python -m roost.local up | down | status`."""

import sys

from roost.local.cli import main

sys.exit(main())
