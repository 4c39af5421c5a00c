"""Hatchling hook: generate protobuf code before a wheel or an editable install is built."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GenerateProtobuf(BuildHookInterface[Any]):
    """Calls proto/build_pb.py."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Generate unless what is there is newer than its inputs."""
        path = Path(self.root) / "proto" / "build_pb.py"
        spec = importlib.util.spec_from_file_location("build_pb", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not module.is_fresh():
            module.generate()
