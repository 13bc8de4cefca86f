"""Where the package's own configurations are."""

from pathlib import Path

_INSIDE = Path(__file__).parent / "conf"
CONF = _INSIDE if _INSIDE.exists() else Path(__file__).parent.parent / "conf"
"""The configuration folder: inside an installed wheel, at the top level of a checkout."""
