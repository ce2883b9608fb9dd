"""How a token is asked for: the SDK's flows, with what they leave out. Imported with the first server of a task, as the SDK is.

To each of them: a scope that is configured is the one asked for, and authorization servers of the protocol's form of 2025-03-26 are
known also where their issuer has a path. And one of our own: cross-app access, by an assertion of somebody's identity.
"""

from collections.abc import AsyncGenerator, Callable
from typing import Any
from urllib.parse import quote

import httpx2
import msgspec
from mcp.client.auth import OAuthClientProvider, OAuthFlowError
from mcp.client.auth.extensions.client_credentials import (
    ClientCredentialsOAuthProvider,
    PrivateKeyJWTOAuthProvider,
    _require_metadata_for_configured_issuer,
)
from mcp.client.auth.utils import (
    build_oauth_authorization_server_metadata_discovery_urls,
    build_protected_resource_metadata_discovery_urls,
    create_oauth_metadata_request,
    handle_auth_metadata_response,
)
from mcp.shared.auth import JWT_BEARER_GRANT_TYPE

from agent_server.calling.custom import OAuth

WAIT_TIME = 30.0
"""Seconds for an answer of an authorization server or identity provider."""

MAX_ANSWER = 1 << 20
"""Bytes of an identity provider's answer: a token has some thousand."""

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"  # noqa: S105  # the name of a kind of them
ASSERTION = "urn:ietf:params:oauth:token-type:id-jag"


class _Flow(OAuthClientProvider):
    """What all of them have in common."""

    def __init__(self, own: OAuth, url: str, *given: Any, **named: Any) -> None:
        super().__init__(url, *given, **named)
        self._own = own
        self._wants_more = False
        self._issuer_here: str | None = None
        # The last place where a server may name its authorization server, and the one of the form that had no such name.
        self._last_place = build_protected_resource_metadata_discovery_urls(None, url)[-1]
        self._old_place = build_oauth_authorization_server_metadata_discovery_urls(None, url)[0]

    async def _auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        flow = super()._auth_flow(request)
        try:
            asked = await anext(flow)
            while True:
                response = yield asked
                if asked is request:
                    self._wants_more = response.status_code == 403
                elif str(asked.url) == self._last_place and response.status_code != 200:
                    self._issuer_here = await self._issuer_of((yield create_oauth_metadata_request(self._old_place)))
                asked = await flow.asend(response)
        except StopAsyncIteration:
            return
        finally:
            await flow.aclose()

    async def _issuer_of(self, response: httpx2.Response) -> str | None:
        """Gives the issuer that a server's own origin names, if it is of that origin: who serves this place speaks for all of it."""
        _, metadata = await handle_auth_metadata_response(response)
        if metadata is None:
            return None
        named, here = (httpx2.URL(str(url)) for url in (metadata.issuer, self._old_place))
        return str(metadata.issuer) if (named.scheme, named.host, named.port) == (here.scheme, here.host, here.port) else None

    def _expected_issuer(self) -> str:
        return self.context.auth_server_url or self._issuer_here or super()._expected_issuer()

    async def _perform_authorization(self) -> httpx2.Request:
        # The SDK has put what the server names in its place; what is wanted besides, after a 403, it has added.
        if self._own.scope is not None and not self._wants_more:
            self.context.client_metadata.scope = self._own.scope
        return await super()._perform_authorization()


class ByCode(_Flow):
    """By an authorization code."""


class BySecret(_Flow, ClientCredentialsOAuthProvider):
    """By client credentials."""


class ByKey(_Flow, PrivateKeyJWTOAuthProvider):
    """By client credentials that are signed."""


class ByAssertion(_Flow, ClientCredentialsOAuthProvider):
    """By the ID token of somebody who is logged in at an identity provider: that gives an assertion for it, which gives a token.

    `hide` is told the assertion, which is a credential too.
    Source: https://github.com/modelcontextprotocol/ext-auth/blob/main/specification/stable/enterprise-managed-authorization.mdx
    """

    def __init__(self, own: OAuth, url: str, *given: Any, hide: Callable[[str], None], **named: Any) -> None:
        super().__init__(own, url, *given, **named)
        self._hide = hide

    async def _exchange_token_client_credentials(self) -> httpx2.Request:
        _require_metadata_for_configured_issuer(self.context, self._own.issuer)
        metadata = self.context.oauth_metadata
        if metadata is None:
            raise OAuthFlowError("its authorization server has no metadata, which would name it to the identity provider")
        form = {"resource": self.context.get_resource_url()}
        if self.context.client_metadata.scope:
            form["scope"] = self.context.client_metadata.scope
        assertion = await self._assertion({"audience": str(metadata.issuer), **form})
        self._hide(assertion)
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        form, headers = self.context.prepare_token_auth({"grant_type": JWT_BEARER_GRANT_TYPE, "assertion": assertion, **form}, headers)
        return httpx2.Request("POST", self._get_token_endpoint(), data=form, headers=headers)

    async def _assertion(self, wanted: dict[str, str]) -> str:
        """Asks the identity provider for it. Errors: OAuthFlowError, and what httpx2 raises."""
        own = self._own
        form = {
            "grant_type": EXCHANGE,
            "requested_token_type": ASSERTION,
            "subject_token": own.id_token or "",
            "subject_token_type": ID_TOKEN,
            **wanted,
        }
        client, auth = own.idp_client_id, None
        if client is not None and own.idp_client_secret is not None:
            auth = httpx2.BasicAuth(quote(client, safe=""), quote(own.idp_client_secret, safe=""))
        elif client is not None:
            form["client_id"] = client
        async with (
            httpx2.AsyncClient(timeout=WAIT_TIME) as http,
            http.stream("POST", own.idp_token_endpoint or "", data=form, auth=auth) as response,
        ):
            return _assertion_in(response.status_code, await _content(response))


async def _content(response: httpx2.Response) -> bytes:
    content = b""
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > MAX_ANSWER:
            raise OAuthFlowError(f"the identity provider's answer is over {MAX_ANSWER} bytes")
    return content


def _assertion_in(status: int, content: bytes) -> str:
    try:
        answer = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError):
        answer = {}
    if status != 200:
        why = str(answer.get("error") or f"HTTP {status}")[:100]
        raise OAuthFlowError(f"the identity provider gave nothing for the ID token, which may have expired: {why}")
    assertion, kind = answer.get("access_token"), answer.get("issued_token_type")
    if not isinstance(assertion, str) or kind != ASSERTION:
        raise OAuthFlowError("the identity provider gave something else than an assertion of identity (id-jag)")
    return assertion
