"""Fixtures of a folder from which runs are started."""

from tests.support.start_folder import dataset, place

__all__ = ["dataset", "place"]
