"""What a machine with an OpenClaw offers to others: control, pairing, and the way to the gateway."""
