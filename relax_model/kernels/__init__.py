"""The operators' kernels: one folder an operator, one module a target family, found through `registry`."""
