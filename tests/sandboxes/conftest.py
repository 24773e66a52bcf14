"""Fixtures of the control plane in one process."""

from tests.in_process import clock, control_plane, engine, pods, start_control_plane

__all__ = ["clock", "control_plane", "engine", "pods", "start_control_plane"]
