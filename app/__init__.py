"""Sandgate's control plane."""
