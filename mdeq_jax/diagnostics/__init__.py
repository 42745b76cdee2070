"""How the solves converge: traces, spectral radius, evaluations by number of solver steps."""
