"""The training recipe of the embedded model: drawn worlds in, a folder of weights out. The server never imports it."""
