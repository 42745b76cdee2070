"""DEQ-Transformer: a language model whose layer is the equilibrium of one Transformer block."""
