"""From parameters to pixels: tokenizer, sampling, pipeline, and the engine that owns the device."""
