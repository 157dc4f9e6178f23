"""The laptop stack: a real API server and etcd, a simulated Fly, and the operator, in one command.

It promises a control plane that behaves like any other, started in seconds and gone without a trace, and figures
computed from its own records. It never touches a cluster it did not start, and never runs the operator as admin.
"""
