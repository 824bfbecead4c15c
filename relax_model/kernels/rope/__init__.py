"""Cosines and sines of the rotary embedding (Su et al. 2021, arXiv:2104.09864), once a step for all layers."""
