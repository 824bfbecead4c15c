"""Metal: kernels in its shading language from TVM's code generator, and TVM's Metal runtime on a Mac."""
