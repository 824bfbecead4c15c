"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1) over a paged cache of latents.

A cached token is its normalised latent, `kv_lora_rank` wide, and the rotated key that all heads share.
"""
