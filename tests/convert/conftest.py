from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reference_dir():
    """The reference figures of the original programs, which lie beside the repository."""
    path = Path(__file__).resolve().parents[3] / "shared" / "reference"
    if not path.is_dir():
        pytest.skip(f"the reference files are not at {path}")
    return path
