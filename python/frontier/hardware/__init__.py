"""GPUs from facts: presets and any other from a ten-line YAML file (see `frontier.hardware.reader`)."""

from frontier.hardware.reader import gpu_names, load_gpu
from frontier.hardware.spec import GpuSpec, Links, LinkSpec, PeakFlops

__all__ = ["GpuSpec", "LinkSpec", "Links", "PeakFlops", "gpu_names", "load_gpu"]
