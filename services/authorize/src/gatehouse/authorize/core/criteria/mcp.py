"""The criterion about MCP requests."""

from __future__ import annotations

from typing import Final

from gatehouse.authorize.core.check_request import RequestFacts
from gatehouse.authorize.core.criteria.facts import Compiled, Result
from gatehouse.authorize.core.identity import Identity
from gatehouse.common.policy.ast import Criterion
from gatehouse.common.policy.matchers import parse_string_matcher
from gatehouse.common.policy.matching import string_predicate

TOOLS_CALL: Final = "tools/call"
_MATCH: Result = (True, "mcp-tool-match")
_NO_MATCH: Result = (False, "mcp-tool-no-match")
_NO_CALL: Result = (False, "mcp-not-a-tool-call")


def mcp_tool(criterion: Criterion) -> Compiled:
    """The tool that is called. False for whatever is no tool call, so for all that is no MCP."""
    matches = string_predicate(parse_string_matcher(criterion.data))

    def test(facts: RequestFacts, identity: Identity) -> Result:
        del identity
        if facts.mcp is None or facts.mcp.method != TOOLS_CALL:
            return _NO_CALL
        return _MATCH if matches(facts.mcp.tool) else _NO_MATCH

    return Compiled(test, (_MATCH, _NO_MATCH, _NO_CALL))
