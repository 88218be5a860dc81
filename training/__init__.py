"""Churn models: data split by time, tuning, calibration, tracking and the model registry."""
