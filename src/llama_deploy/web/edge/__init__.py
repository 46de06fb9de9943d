"""The layers that every HTTP request passes before it reaches a route; see docs/operate/http-edge.md."""
