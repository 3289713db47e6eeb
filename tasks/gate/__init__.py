"""May this checkpoint pass? Limits on what was measured, decided on the bounds of intervals."""
