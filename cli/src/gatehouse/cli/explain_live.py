"""`gatehouse explain --live`: why a running authorize decides so about a real session."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import grpc
from google.protobuf.json_format import MessageToDict, ParseDict
from rich.console import Console

from gatehouse.authorize.core.evaluator import Evaluation, Verdict, decide
from gatehouse.authorize.core.explain import (
    Change,
    CriterionAnswer,
    Explanation,
    Need,
    OperatorAnswer,
)
from gatehouse.authorize.core.explain_answer import document
from gatehouse.cli.explain import show
from gatehouse.cli.operator import operator_settings
from gatehouse.common.clock import SystemClock, SystemRng
from gatehouse.common.config.resolved import ResolvedSettings
from gatehouse.common.errors import GatehouseError, InvalidArgumentError
from gatehouse.common.rpc.allow_list import OPERATOR
from gatehouse.common.rpc.channel import BalancedChannel
from gatehouse.common.rpc.credentials import ServiceCredentials
from gatehouse.common.rpc.status import from_rpc_error
from gatehouse.common.runtime.process import EXIT_CONFIG, EXIT_OK
from gatehouse.pb import authorize_pb2, authorize_pb2_grpc

EXIT_FAILED: Final = 1
_READY_S: Final = 5.0
_CALL_S: Final = 10.0


def explain_live(
    config: Path | None,
    environ: Mapping[str, str],
    *,
    address: str,
    session_id: str,
    route: str,
    facts: Mapping[str, object],
    as_json: bool = False,
    console: Console | None = None,
) -> int:
    """Ask the authorize at `address` and print its answer.

    `address`: HOST:PORT of its gRPC server, or a URL (http, https, unix); without a scheme it is
    https unless `grpc_insecure` is set. `session_id`: empty for nobody. `facts`: of the request
    alone (method, path, ip, headers, time, certificate). 0 when there is an answer, 2 for mistakes
    of the caller, 1 when authorize could not be asked or knows no such session or route.
    """
    console = console or Console()
    settings = operator_settings(config, environ)
    if settings is None:
        return EXIT_CONFIG
    request = authorize_pb2.ExplainRequest(session_id=session_id, route=route)
    ParseDict(dict(facts), request.facts)
    try:
        answer = asyncio.run(ask(settings, address, request))
    except GatehouseError as error:
        print(str(error), file=sys.stderr)
        return EXIT_CONFIG if isinstance(error, InvalidArgumentError) else EXIT_FAILED
    if as_json:
        console.print_json(data=document(answer))
    else:
        who = answer.email or answer.user_id or "nobody"
        show(explanation_of(answer), console, title=f"{answer.route_from} for {who}")
    return EXIT_OK


async def ask(
    settings: ResolvedSettings, address: str, request: authorize_pb2.ExplainRequest
) -> authorize_pb2.ExplainResponse:
    """One question to one authorize, as the operator. Raises GatehouseError."""
    scheme = "http" if settings.grpc_insecure else "https"
    clock = SystemClock()
    channel = BalancedChannel(
        [address if "://" in address else f"{scheme}://{address}"],
        audience="authorize",
        health_service="",
        credentials=ServiceCredentials(OPERATOR, lambda: settings.shared_secrets, clock),
        ca_pem=settings.ca_bundle_pem,
        client_certificate=settings.grpc_client_certificate,
        override_name=settings.settings.override_certificate_name,
        clock=clock,
        rng=SystemRng(),
    )
    try:
        stub = authorize_pb2_grpc.ExplainServiceStub(await channel.ready_channel(_READY_S))
        return await stub.Explain(request, timeout=_CALL_S)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    finally:
        await channel.close()


def explanation_of(answer: authorize_pb2.ExplainResponse) -> Explanation:
    """The explanation that was sent."""
    evaluation = Evaluation(
        _verdict(answer.allow),
        _verdict(answer.deny),
        answer.valid_until if answer.HasField("valid_until") else float("inf"),
    )
    return Explanation(
        outcome=decide(evaluation),
        evaluation=evaluation,
        operators=tuple(_operator(one) for one in answer.operators),
        changes=tuple(
            Change(
                change.outcome,
                tuple(Need(need.place, need.now, need.instead) for need in change.needs),
            )
            for change in answer.changes
        ),
    )


def _verdict(verdict: authorize_pb2.Verdict) -> Verdict:
    return Verdict(verdict.value, frozenset(verdict.reasons))


def _operator(operator: authorize_pb2.Operator) -> OperatorAnswer:
    return OperatorAnswer(
        rule=operator.rule,
        action=operator.action,
        operator=operator.operator,
        value=operator.value,
        reasons=tuple(operator.reasons),
        criteria=tuple(
            CriterionAnswer(
                place=one.place,
                key=one.criterion,
                data=MessageToDict(one.data),
                value=one.value,
                reason=one.reason,
                decides=one.decides,
                facts=MessageToDict(one.facts),
            )
            for one in operator.criteria
        ),
    )
