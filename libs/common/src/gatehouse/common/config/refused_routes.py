"""Which stored routes keep a configuration from taking effect, found by trying.

Routes of records are checked like those of a file before anything is built of them. Should a part
of the process refuse one all the same, it must cost neither the file's changes nor the other
routes: whoever may write records could else freeze the configuration of everybody.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from gatehouse.common.config.issues import Issue, Severity
from gatehouse.common.config.model import Route
from gatehouse.common.config.resolved import ResolvedRoute, ResolvedSettings
from gatehouse.common.config.route_model import DirectResponse
from gatehouse.common.policy.legacy import route_policy

OUT_OF_SERVICE: Final = "This route is out of service: its configuration was refused.\n"
MOST_TRIES: Final = 40  # a try costs as much as a reload
_MATCHER: Final = ("from_", "path", "prefix", "regex")

Rehearse = Callable[[ResolvedSettings], Awaitable[None]]


def out_of_service(matcher: Route) -> Route:
    """What answers 503 to everything that this route matches."""
    return matcher.model_copy(
        update={
            "response": DirectResponse(status=503, body=OUT_OF_SERVICE),
            "allow_public_unauthenticated_access": True,
        }
    )


async def without_refused(settings: ResolvedSettings, rehearse: Rehearse) -> ResolvedSettings:
    """`settings` with what can take effect: refused stored routes answer 503 in their place.

    `rehearse` raises for what cannot. Raises what it raises when the stored routes are not to
    blame. After `MOST_TRIES` those not yet tried count as refused.
    """
    stored = [index for index, route in enumerate(settings.routes) if route.is_stored]
    await rehearse(_with(settings, dict.fromkeys(stored)))
    refused = await _refused(settings, stored, rehearse)
    stand_ins = {index: _stand_in(settings.routes[index]) for index in refused}
    standing = _with(settings, stand_ins)
    # What a route matches may itself be what is wrong with it; then nothing answers there.
    without = _with(standing, dict.fromkeys(await _refused(standing, list(refused), rehearse)))
    issues = (_issue(settings.routes[index], refused[index]) for index in sorted(refused))
    return replace(without, left_out=(*settings.left_out, *issues))


async def _refused(
    settings: ResolvedSettings, indices: Sequence[int], rehearse: Rehearse
) -> dict[int, str]:
    """Why some of these routes cannot take effect, by index."""
    search = _Search(settings, indices, rehearse)
    await search.look_among(indices)
    return search.refused


class _Search:
    """Halves what is refused until single routes are left."""

    def __init__(
        self, settings: ResolvedSettings, indices: Sequence[int], rehearse: Rehearse
    ) -> None:
        self._settings = settings
        self._unproven = set(indices)  # left out for now
        self._rehearse = rehearse
        self._tries = 0
        self.refused: dict[int, str] = {}  # index to reason

    async def look_among(self, indices: Sequence[int]) -> None:
        """Find the refused ones of these; the rest count as sound from now on."""
        if not indices:
            return
        if self._tries >= MOST_TRIES:
            self._refuse(indices, "it was not tried: too many others were refused")
            return
        self._tries += 1
        self._unproven.difference_update(indices)
        try:
            left_out = self._unproven | self.refused.keys()
            await self._rehearse(_with(self._settings, dict.fromkeys(left_out)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            if len(indices) == 1:
                self._refuse(indices, str(error) or type(error).__name__)
                return
            self._unproven.update(indices)
            half = len(indices) // 2
            await self.look_among(indices[:half])
            await self.look_among(indices[half:])

    def _refuse(self, indices: Sequence[int], reason: str) -> None:
        self._unproven.difference_update(indices)
        self.refused.update(dict.fromkeys(indices, reason))


def _with(
    settings: ResolvedSettings, replaced: Mapping[int, ResolvedRoute | None]
) -> ResolvedSettings:
    """The settings with some routes replaced; None leaves one out."""
    routes = (replaced.get(index, route) for index, route in enumerate(settings.routes))
    return replace(settings, routes=tuple(route for route in routes if route is not None))


def _stand_in(route: ResolvedRoute) -> ResolvedRoute:
    keys = route.settings.model_dump(by_alias=True, include=set(_MATCHER))
    matcher = Route.model_validate(keys)
    return ResolvedRoute(
        id=route.id,
        checksum=0,
        settings=out_of_service(matcher),
        from_url=route.from_url,
        upstreams=(),
        policy=route_policy(allow_public_unauthenticated_access=True),
        identity_provider=None,
        is_stored=True,
    )


def _issue(route: ResolvedRoute, reason: str) -> Issue:
    return Issue(
        Severity.ERROR,
        f"route {route.id} ({route.settings.from_})",
        f"is left out, as it cannot take effect: {reason}",
        "write it otherwise, or delete it",
        "databroker",
    )
