"""What is installed beside the package itself: asked for before work starts, so that nothing is lost for want of it."""

from __future__ import annotations

import importlib.util


def need(package: str, extra: str, what: str, or_else: str = "") -> None:
    """ValueError, with the command that mends it, where a package of an extra is not installed. what: which work needs
    it; or_else: how to do without."""
    if not there(package):
        remedy = f"install it with: pip install 'depthdial[{extra}]'"
        raise ValueError(f"{what} needs {package}; {remedy}{or_else and f', or {or_else}'}")


def there(package: str) -> bool:
    """Is it installed? Nothing is imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
