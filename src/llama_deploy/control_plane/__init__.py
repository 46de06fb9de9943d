"""The control plane: owns sessions, tasks, services and event streams."""

from __future__ import annotations

from llama_deploy.control_plane.config import ControlPlaneConfig
from llama_deploy.control_plane.direct_gateway import DirectGateway
from llama_deploy.control_plane.http.control_plane_server import ControlPlaneServer
from llama_deploy.control_plane.plane import ControlPlane
from llama_deploy.renamed import old_names

__all__ = ["ControlPlane", "ControlPlaneConfig", "ControlPlaneServer", "DirectGateway"]

__getattr__ = old_names(__name__, __path__)
