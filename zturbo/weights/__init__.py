"""Weights: what a path holds, and how its tensors reach the parameters of `zturbo.models`.

checkpoint   the front door: a folder or a file -> configs, names and tensor streams      <- read this first
names        the one table from every checkpoint's names to our parameters
infer        configs of files that carry none, completed from `published`
single_file  one file by its content: safetensors, GGUF, or a refusal
safetensors_file / folder / scaled / gguf_file    the readers; `sources` says what they offer
load         strict placement into a module made on the meta device, and the way back
lora         adapters, merged into the stream
hub          downloads into the hub's usual cache; `transfer` brings one large file
version      the digest that names a checkpoint's content

Nothing here unpickles, maps files into memory or trusts a header: whatever a file holds, it loads or
raises `WeightsError` with the file and the reason.
"""
