"""Kept for programs written for 0.6."""

from __future__ import annotations

from llama_deploy.control_plane.http.core_endpoints import CoreEndpoints as BaseControlPlane

__all__ = ["BaseControlPlane"]
