"""The version of the package, one place for all."""

from importlib.metadata import version

VERSION = version("splitedge")
