"""DeepSeekMoE: the choice of experts, and products with the chosen ones (DeepSeek-V3 report, section 2.1.2)."""
