"""What Kubernetes tells us. Never decides, never writes, never raises."""
