"""How the Admin RPCs, which are for operators alone, meet the store."""

from __future__ import annotations

from gatehouse.common.observability.logging import get_logger
from gatehouse.databroker.core.options import BUILT_IN
from gatehouse.databroker.edge.backends.base import Storage
from gatehouse.databroker.edge.servicer import Context, within
from gatehouse.pb import databroker_admin_pb2 as pb
from gatehouse.pb import databroker_admin_pb2_grpc as pb_grpc
from gatehouse.pb.databroker_pb2 import TypedOptions

_log = get_logger("databroker")


class AdminServicer(pb_grpc.AdminServicer):
    """gatehouse.databroker.Admin over one store."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def Status(  # noqa: N802
        self, request: pb.StatusRequest, context: Context
    ) -> pb.StatusResponse:
        """Return which store this is, where it stands and which options were set."""
        del request, context
        position = await within(self._storage.position())
        options = await within(self._storage.all_options())
        return pb.StatusResponse(
            storage=self._storage.name,
            server_version=position.server_version,
            earliest_record_version=position.earliest,
            latest_record_version=position.latest,
            options=(
                TypedOptions(typeURL=type_, options=rules.to_message())
                for type_, rules in options.items()
                if rules != BUILT_IN.get(type_)
            ),
        )

    async def ChangeServerVersion(  # noqa: N802
        self, request: pb.ChangeServerVersionRequest, context: Context
    ) -> pb.ChangeServerVersionResponse:
        """Begin a new history with the same records."""
        del request, context
        old, new = await within(self._storage.change_history())
        _log.warning("server version changed by an operator", old=str(old), new=str(new))
        return pb.ChangeServerVersionResponse(old_server_version=old, new_server_version=new)
