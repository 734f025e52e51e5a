"""The control plane: probes, reload, operators' intent."""
