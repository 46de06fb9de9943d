"""Kept for programs written for 0.6."""

from __future__ import annotations

from llama_deploy.client import Client

__all__ = ["Client"]
