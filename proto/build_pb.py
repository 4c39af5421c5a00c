"""Generate the protobuf and gRPC modules: the only way code is generated here.

Reads proto/gatehouse/pb/*.proto and writes proto/gen/gatehouse/pb/: messages, async gRPC stubs and
their type stubs. Generation is skipped while the output is newer than every input.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "gatehouse" / "pb"
OUTPUT = HERE / "gen"


def is_fresh() -> bool:
    """True while no input is newer than what was last generated from it."""
    marker = OUTPUT / "gatehouse" / "pb" / "__init__.py"
    if not marker.exists():
        return False
    made = marker.stat().st_mtime
    inputs = [*SOURCE.glob("*.proto"), Path(__file__)]
    return all(path.stat().st_mtime <= made for path in inputs)


def generate() -> None:
    """Run protoc over every contract; raise SystemExit with protoc's status when it fails."""
    from importlib import resources

    from grpc_tools import protoc

    target = OUTPUT / "gatehouse" / "pb"
    target.mkdir(parents=True, exist_ok=True)
    for stale in target.glob("*"):
        if stale.is_file():
            stale.unlink()
    well_known = str(resources.files("grpc_tools") / "_proto")
    bin_dir = Path(sys.executable).parent
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={HERE}",
            f"--proto_path={well_known}",
            f"--plugin=protoc-gen-mypy={bin_dir / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={bin_dir / 'protoc-gen-mypy_grpc'}",
            f"--python_out={OUTPUT}",
            f"--grpc_python_out={OUTPUT}",
            f"--mypy_out=quiet:{OUTPUT}",
            f"--mypy_grpc_out=quiet,only_async:{OUTPUT}",
            *(str(path.relative_to(HERE)) for path in sorted(SOURCE.glob("*.proto"))),
        ]
    )
    if status != 0:
        raise SystemExit(status)
    (target / "py.typed").write_text("")
    (target / "__init__.py").write_text('"""Generated protobuf messages and gRPC stubs."""\n')


if __name__ == "__main__":
    if not is_fresh() or "--force" in sys.argv:
        generate()
        print(f"generated {OUTPUT}")
