"""The realistic runs that the report's tests have too."""

from tests.pages.conftest import extracted, inputs

__all__ = ["extracted", "inputs"]
