"""Stand-ins for what an agent talks to on the Internet: a model's provider and Telegram.

They speak as much of both protocols as OpenClaw needs, over real sockets on this machine. Each is steered by its
methods where it runs in the same process, and by HTTP below `/ctl/` from elsewhere. Nothing leaves the machine.
"""
