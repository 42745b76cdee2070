"""DEQ-TrellisNet: a language model whose layer is the equilibrium of one gated convolution."""
