"""The method as pure functions of tensors: schedules, the eps adapter, the ODE, volume growth, sampling, training.

Nothing here reads a run directory, a database or an orchestrator; it imports torch, diffusers and numpy only.
"""
