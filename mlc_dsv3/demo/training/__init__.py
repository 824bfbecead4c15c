"""How the demo checkpoint was made; train.py is where to begin (needs torch, tokenizers and safetensors)."""
