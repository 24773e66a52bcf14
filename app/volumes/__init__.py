"""Volumes: files that outlive sandboxes and may be shared by several at a time."""

from app.volumes.content import VolumeContent
from app.volumes.pods import VolumePods
from app.volumes.volumes import Volume, Volumes

__all__ = ["Volume", "VolumeContent", "VolumePods", "Volumes"]
