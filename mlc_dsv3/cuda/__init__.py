"""CUDA: what TVM leaves out. Its code generator writes CUDA C++; here nvcc makes machine code of it, for every
architecture that is asked for, on a machine without any GPU; and the driver is loaded where libraries run."""
