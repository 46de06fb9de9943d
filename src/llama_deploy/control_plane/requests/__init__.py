"""What clients and instances ask of the control plane, by entity."""
