"""Mirrors of metrics.jsonl at Weights & Biases, MLflow and OpenTelemetry, made by processes beside the training."""
