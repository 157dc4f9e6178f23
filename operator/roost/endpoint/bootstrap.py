"""How a machine without a stored token gets its agent's: for the OIDC token that Fly makes of it.

Promises: whoever is not the Agent's current machine gets what every stranger gets, whether the Agent exists or not;
a good token that can't be told from a bad one just now is asked to come again (503). The leader answers, since it knows
which machine is the current one. Neither token is kept or logged.
"""

import structlog
from aiohttp import web
from prometheus_client import Counter

from roost.agents.proof import NotIts, NotKnown, Proofs, Replaced
from roost.endpoint.oidc import IssuerAway, NotProved, Verifier
from roost.endpoint.relay import Relay
from roost.endpoint.walls import Problem, Route, Walls, bearer, body, connection, json_answer, stranger
from roost_agent.contract import MACHINE_ID_HEADER, TOKEN_ROUTE
from roost_agent.contract.bootstrap import TokenAnswer

log = structlog.get_logger(__name__)
AGAIN_SECONDS = 5


def routes(walls: Walls, relay: Relay, proofs: Proofs, verifier: Verifier, answers: Counter) -> list[Route]:
    """The one call there is."""

    async def exchange(request: web.BaseRequest, did: str) -> web.Response:
        walls.opened()
        content = await body(request)
        if not (token := bearer(request)):
            raise Problem(401, "unauthorized", "send Fly's OIDC token of the machine as Authorization: Bearer")
        if relay.needed:
            return await relay.pass_on(request, content)
        try:
            claims = await verifier.claims(token, proofs.issuer(did), proofs.audience)
            session, own, epoch = proofs.accept(did, claims)
        except IssuerAway as error:
            raise Problem(503, "not_now", "the issuer of the token can't be asked now", AGAIN_SECONDS) from error
        except NotKnown as error:
            raise Problem(
                503, "not_now", "which machine is this agent's current one is not known yet", AGAIN_SECONDS
            ) from error
        except Replaced as error:
            raise Problem(409, "superseded", "another machine is this agent's current one") from error
        except (NotProved, NotIts) as error:
            log.debug("proof refused", did=did[:200], why=str(error) or "not its machine")
            raise stranger() from None
        if request.headers.get(MACHINE_ID_HEADER, claims["machine_id"]) != claims["machine_id"]:
            raise stranger()
        connection(request).caller = session
        walls.pace(did)
        log.info("machine proved itself", key=str(session.key), machine=claims["machine_id"], epoch=epoch)
        return json_answer(TokenAnswer(token=own, epoch=epoch).write(), headers={"Cache-Control": "no-store"})

    return [Route("POST", (TOKEN_ROUTE,), exchange, answers)]
