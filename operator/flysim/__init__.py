"""flysim: a Fly Machines API that behaves like the real one; its machines are real processes.

`Sim` (in `flysim.sim`) is the whole world behind one function from request to answer; `flysim.http` puts it on a socket
and `flysim.cli` on the command line. Knows nothing of Roost's operator.
"""
