"""The connection between the gateway and the engine process, and the supervision of that process."""
