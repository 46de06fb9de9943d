"""Metrics of a control plane."""
