"""Language models: likelihood of the next token, with memory from segment to segment."""
