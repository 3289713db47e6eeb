"""A run handed to other tools: MLflow, model cards."""
