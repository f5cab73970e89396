"""zturbo: an open, self-hosted server of the Z-Image-Turbo text-to-image model."""

__version__ = "0.1.0"
