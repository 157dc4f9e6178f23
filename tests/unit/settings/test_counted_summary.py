"""What a run of the tests ends with: how many there were, and what became of them."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_a_run_of_the_tests_ends_with_their_count(tmp_path: Path) -> None:
    """With the settings of this repository: an option too many in them, and the count is gone."""
    tests = "def test_a(): pass\ndef test_b(): pass\ndef test_c(): assert False\n"
    (tmp_path / "test_two_and_one.py").write_text(tests)
    argv = (sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", ".", ".")
    ran = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert re.search(r"= 1 failed, 2 passed in [0-9.]+s =+$", ran.stdout.rstrip()), ran.stdout[-500:]
