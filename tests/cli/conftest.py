"""Every test here runs in an empty folder."""

from tests.helpers.empty_folder import empty_folder

__all__ = ["empty_folder"]
