"""Prefect tasks, one module a step, over sub-packages that know nothing of Prefect."""
