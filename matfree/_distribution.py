"""Detection of a mixture with PyPI's ``matfree``, another library of the same import name.

Installing both distributions writes their modules into one folder without a warning, and
uninstalling either one then breaks the other.
"""

from __future__ import annotations

from pathlib import Path

_MODULES_OF_THE_OTHER = ("stochtrace.py", "decomp.py", "funm.py", "lstsq.py")


def refuse_mixture(package: Path) -> None:
    """Raise ImportError if the folder of the package contains modules of the other library."""
    found = [name for name in _MODULES_OF_THE_OTHER if (package / name).exists()]
    if found:
        raise ImportError(
            f"two libraries are mixed in {package}: this one (distribution 'matfree-nla') and "
            f"PyPI's 'matfree', a JAX library with the same import name ({', '.join(found)} are "
            "its modules). Use a separate environment for each: uninstall both, then install "
            "this one again from its wheel or checkout, with pip install PATH."
        )
