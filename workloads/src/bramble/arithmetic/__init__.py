"""What kernels share: compilation to machine code, and arithmetic modulo 64-bit numbers."""
