"""Tables as the page prints them: cells are text already, so that the template only lays them out."""

from __future__ import annotations

MOST_ROWS = 50
_UNITS_OF_SHARES = {"fraction", "share", "proportion"}
