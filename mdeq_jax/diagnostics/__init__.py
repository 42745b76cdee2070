"""How equilibria converge and contract."""
