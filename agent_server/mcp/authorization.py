"""OAuth for an MCP server at a URL, as far as it goes without a person. Imported with the first server of a task, as the SDK is.

A server that asks for it is authorized by client credentials or an assertion of somebody's identity where they are configured, else by
an authorization code, if its authorization server gives one without asking anybody. Tokens are kept in memory, for as long as the
server is configured, and masked wherever a server repeats one.
"""

import warnings
from collections.abc import AsyncGenerator

import httpx2
from mcp.client.auth import OAuthClientProvider, OAuthFlowError
from mcp.client.auth.extensions.client_credentials import SignedJWTParameters
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from pydantic import AnyUrl

from agent_server.calling.custom import McpConfig, OAuth
from agent_server.mcp.grants import WAIT_TIME, ByAssertion, ByCode, ByKey, BySecret
from agent_server.redaction import Secrets

REDIRECT = "http://127.0.0.1:1/callback"
"""Where an authorization server leads back to. Nobody listens there: the code is taken from the redirect itself."""

MAX_REDIRECTS = 5
"""Redirects that are followed on the way to it."""


def authorization(config: McpConfig, secrets: Secrets) -> httpx2.Auth | None:
    """Gives what authorizes requests to a server; None where its headers do, or nothing should. What it is given joins the `secrets`."""
    if config.url is None or config.oauth is False or any(name.lower() == "authorization" for name in config.headers):
        return None
    own = config.oauth if isinstance(config.oauth, OAuth) else OAuth()
    if own.id_token is not None or own.grant_type == "client_credentials":
        return _Unlocked(_credentials(config.url, own, _Memory(None, secrets)))
    is_address = (own.client_id or "").startswith("https://")
    grant = _Grant()
    metadata = OAuthClientMetadata(client_name="agent-server", redirect_uris=[AnyUrl(REDIRECT)], scope=own.scope)
    memory = _Memory(None if is_address else _registered(own), secrets)
    address = own.client_id if is_address else None
    return _Unlocked(ByCode(own, config.url, metadata, memory, grant.ask, grant.answer, client_metadata_url=address))


def _credentials(url: str, own: OAuth, memory: "_Memory") -> OAuthClientProvider:
    name = own.client_id or ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no issuer is named: the credentials go where the server leads, as its URL is trusted to
        if own.private_key is not None:
            signed = SignedJWTParameters(issuer=name, subject=name, signing_key=own.private_key, signing_algorithm=own.algorithm)
            return ByKey(own, url, memory, name, signed.create_assertion_provider(), own.scope, own.issuer)
        given = (own, url, memory, name, own.client_secret or "")
        if own.id_token is not None:
            return ByAssertion(*given, scope=own.scope, issuer=own.issuer, hide=memory.hide)
        return BySecret(*given, scope=own.scope, issuer=own.issuer)


def _registered(own: OAuth) -> OAuthClientInformationFull | None:
    if own.client_id is None:
        return None
    method = "none" if own.client_secret is None else "client_secret_basic"
    return OAuthClientInformationFull(
        client_id=own.client_id,
        client_secret=own.client_secret,
        redirect_uris=[AnyUrl(REDIRECT)],
        token_endpoint_auth_method=method,
        issuer=own.issuer,
    )


class _Unlocked(httpx2.Auth):
    """The SDK's authorization, asked only when a request was refused: it lets one request at a time wait for its answer."""

    def __init__(self, provider: OAuthClientProvider) -> None:
        self._provider = provider

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        known = self._provider.context
        if known.is_token_valid() or not known.can_refresh_token():
            if known.is_token_valid() and known.current_tokens is not None:
                request.headers["Authorization"] = f"Bearer {known.current_tokens.access_token}"
            response = yield request
            if response.status_code not in (401, 403):
                return
        flow = self._provider.async_auth_flow(request)
        try:
            asked = await flow.__anext__()
            while True:
                asked = await flow.asend((yield asked))
        except StopAsyncIteration:
            return
        finally:
            await flow.aclose()


class _Memory:
    """Keeps a server's token and client."""

    def __init__(self, client: OAuthClientInformationFull | None, secrets: Secrets) -> None:
        self._client = client
        self._secrets = secrets
        self._token: OAuthToken | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self._token

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self._token = tokens
        self.hide(tokens.access_token, tokens.refresh_token)

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self._client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self._client = client_info
        self.hide(client_info.client_secret)

    def hide(self, *values: str | None) -> None:
        """Masks credentials wherever they are repeated."""
        self._secrets.add([value for value in values if value is not None], is_own=False)


class _Grant:
    """Asks an authorization server for a code, as a browser that nobody sits at."""

    def __init__(self) -> None:
        self._given = httpx2.URL(REDIRECT)

    async def ask(self, url: str) -> None:
        """Errors: OAuthFlowError when it wants a person."""
        async with httpx2.AsyncClient(timeout=WAIT_TIME) as http:
            at = httpx2.URL(url)
            for _ in range(MAX_REDIRECTS):
                async with http.stream("GET", at) as response:  # of which only the head counts
                    pass
                if not response.has_redirect_location:
                    break
                at = at.join(response.headers["location"])
                if str(at.copy_with(query=None, fragment=None)) == REDIRECT:
                    self._given = at
                    return
        raise OAuthFlowError("it wants somebody to log in; put a token into its headers, or client credentials into its oauth")

    async def answer(self) -> AuthorizationCodeResult:
        given = self._given.params
        if "error" in given:
            raise OAuthFlowError(f"it was not authorized: {given['error'][:100]}")
        return AuthorizationCodeResult(code=given.get("code", ""), state=given.get("state"), iss=given.get("iss"))
