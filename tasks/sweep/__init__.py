"""The paper's parameter study on a run's images."""
