"""Kept for programs written for 0.6."""

from __future__ import annotations

from llama_deploy.control_plane import ControlPlaneConfig, ControlPlaneServer
from llama_deploy.types.topics import CONTROL_PLANE as CONTROL_PLANE_MESSAGE_TYPE

__all__ = ["CONTROL_PLANE_MESSAGE_TYPE", "ControlPlaneConfig", "ControlPlaneServer"]
