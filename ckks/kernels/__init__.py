"""The compiled kernels: exact 64-bit integer arithmetic on residue arrays."""
