"""The command `depthdial`: one verb, one file. Verbs import what they need when they run."""

from depthdial.cli.app import main

__all__ = ["main"]
