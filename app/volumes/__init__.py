"""Volumes: files that outlive sandboxes and may be shared by several at a time."""

from app.volumes.content import VolumeContent
from app.volumes.pods import VolumePods
from app.volumes.removals import Removals
from app.volumes.volumes import Volume, Volumes

__all__ = ["Removals", "Volume", "VolumeContent", "VolumePods", "Volumes"]
