"""The DeepSeek-V3 architecture as TVM Relax: configuration, layers, kernels and exported functions.

Data comes in as a parsed `config.json`; what goes out is an IRModule. No files, devices or clocks.
"""
