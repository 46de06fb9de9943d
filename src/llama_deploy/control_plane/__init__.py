"""The control plane: owns sessions, tasks, services and event streams."""

from __future__ import annotations

from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.gateway import DirectGateway
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.control_plane.server import ControlPlaneServer

__all__ = ["ControlPlane", "ControlPlaneConfig", "ControlPlaneServer", "DirectGateway"]
