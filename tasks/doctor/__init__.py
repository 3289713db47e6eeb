"""What could stop a run, looked at before it."""
