"""What is measured is a machine of tests/image, and the world of tests/openclaw."""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[2] / folder) for folder in ("image", "openclaw")]
