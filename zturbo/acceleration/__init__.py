"""Speed, applied to the models from outside."""
