"""What kernels share: functions in machine code, and arithmetic modulo numbers of 64 bits."""
