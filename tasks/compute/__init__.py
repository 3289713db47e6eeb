"""Where work is done: devices, their worker processes, runners, and how far it is."""
