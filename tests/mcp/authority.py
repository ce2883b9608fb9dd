"""An authorization server and an identity provider at one origin, written out: what they are asked is kept."""

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

Answer = tuple[int, bytes, dict[str, str]]
RESOURCE = "/.well-known/oauth-protected-resource/mcp"
METADATA = "/.well-known/oauth-authorization-server"


@dataclass
class Authority:
    """Both, at `origin`. `leads_to` is what its protected resource names as its authorization server, None where it names none."""

    origin: str
    issuer: str
    leads_to: str | None = None
    asked: list[tuple[str, dict[str, str], str]] = field(default_factory=list)
    identity: tuple[int, Any] = (200, {"access_token": "the-assertion", "issued_token_type": "urn:ietf:params:oauth:token-type:id-jag"})

    refuses_assertions: bool = False
    """Whether its token endpoint refuses an assertion, with a message that repeats it."""

    def forms(self, path: str) -> list[dict[str, str]]:
        """What a path was asked."""
        return [form for asked, form, _ in self.asked if asked == path]

    def credentials(self, path: str) -> list[str]:
        return [given for asked, _, given in self.asked if asked == path]

    def answer(self, target: str, authorization: str, body: bytes) -> Answer | None:
        """What it says to a request; None to one for the server that it guards."""
        parts = urlsplit(target)
        text = body.decode() if body[:1] != b"{" else urlencode(json.loads(body))
        form = dict(parse_qsl(parts.query or text))
        self.asked.append((parts.path, form, authorization))
        if parts.path == "/mcp":
            return None if authorization == "Bearer the-token" else (401, b"", {"WWW-Authenticate": "Bearer"})
        said = self._say(parts.path, form)
        return said if isinstance(said, tuple) else (200, json.dumps(said).encode(), {})

    def _say(self, path: str, form: dict[str, str]) -> dict[str, Any] | Answer:
        if path == RESOURCE and self.leads_to is not None:
            return {"resource": f"{self.origin}/mcp", "authorization_servers": [self.leads_to], "scopes_supported": ["all"]}
        if path == METADATA:
            ends = {f"{name}_endpoint": f"{self.origin}/as/{name}" for name in ("authorization", "token", "registration")}
            return {"issuer": self.issuer, "response_types_supported": ["code"], "code_challenge_methods_supported": ["S256"], **ends}
        if path == "/as/registration":
            return {"client_id": "registered", "redirect_uris": ["http://127.0.0.1:1/callback"], "token_endpoint_auth_method": "none"}
        if path == "/as/authorization":
            back = urlencode({"code": "the-code", "state": form["state"]})
            return 302, b"", {"Location": f"{form['redirect_uri']}?{back}"}
        if path == "/as/token" and self.refuses_assertions:
            said = {"error": "invalid_grant", "error_description": f"{form['assertion']} is not known"}
            return 400, json.dumps(said).encode(), {}
        if path == "/as/token":
            return {"access_token": "the-token", "token_type": "Bearer", "expires_in": 3600}
        if path == "/idp/token":
            status, said = self.identity
            return status, json.dumps(said).encode(), {}
        return 404, b"", {}
