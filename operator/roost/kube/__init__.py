"""What we read from and write to Kubernetes."""
