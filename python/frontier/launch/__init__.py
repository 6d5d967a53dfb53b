"""Launch commands in and out: `vllm serve ...`, SGLang's server, and Dynamo's manifests."""

from frontier.launch.exporting import to_dynamo, to_sglang, to_vllm
from frontier.launch.importing import DEFAULT_VERSIONS, Launch, from_command
from frontier.launch.mapping import Remark

__all__ = ["DEFAULT_VERSIONS", "Launch", "Remark", "from_command", "to_dynamo", "to_sglang", "to_vllm"]
