"""Native kernels for a few tokens on a CPU: C++ compiled once on this machine, for the instructions it has."""
