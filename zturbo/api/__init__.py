"""HTTP, and nothing else: bodies to parameters, results and errors to bodies."""
