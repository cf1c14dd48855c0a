"""PyPI's ``matfree`` is another library with the same import name: refuse a mixture.

Installing both writes two libraries into one folder, and nothing warns: half of the
modules are theirs, half are ours, and uninstalling either breaks the other.
"""

from __future__ import annotations

from pathlib import Path

_THEIRS = ("stochtrace.py", "decomp.py", "funm.py", "lstsq.py")


def refuse_mixture(package: Path) -> None:
    """Raise ImportError where the package's folder holds modules of the other library."""
    found = [name for name in _THEIRS if (package / name).exists()]
    if found:
        raise ImportError(
            f"two libraries are mixed in {package}: this one (distribution 'matfree-nla') and "
            f"PyPI's 'matfree', a JAX library with the same import name ({', '.join(found)} are "
            "its). Use one environment for each: uninstall both, then pip install matfree-nla."
        )
