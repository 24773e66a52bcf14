"""Puts a manifest together from a format that has no catalog in mind: values become credentials, settings or words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from app.catalog.formats.reading import Manifest, variable_name

_CREDENTIAL_NAME = re.compile(
    r"api_?key|access_?key|auth|token|secret|passw|passphrase|passcode|pwd|credential|private_?key|bearer|cookie"
    r"|mnemonic|seed_?phrase|webhook(_?url)?$|connection_?str|conn_?str|(^|_)(pass|pat|pin|key|dsn)$"
)
_CREDENTIAL_VALUE = re.compile(
    r"(sk|pk|rk|ghp|gho|ghs|github_pat|glpat|xox[abp]|AKIA|ey[JA-Z])[-_A-Za-z0-9.]{8,}|[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@.*"
    r"|https?://(hooks\.|\S*/(web)?hooks?/)[\s\S]*"
)
_RANDOM_TEXT = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9+=]{32,}")
_PLACEHOLDER = re.compile(r"<[^<>]*>|\$\{[^}]*\}|your[-_ ].*|x{3,}|\.{3}|", re.IGNORECASE)
_SCHEME = r"(?>(?:[A-Za-z][A-Za-z-]*[ ]+(?![\w-]*[=:]))?)"
"""In front of a credential, `Bearer `. These three never step back, as a document may hold megabytes of one value."""
_NAMED_VALUE = re.compile(rf"""(?<![\w-])([\w-]++)["']?\s*+[=:]\s*+["']?{_SCHEME}(?=[^\s"',;&$])""")
_BESIDE_A_REFERENCE = re.compile(rf"\s*{_SCHEME}([\s;,:$]|[\w-]++=)*+")
_HARMLESS = re.compile(
    r"true|false|yes|no|on|off|enabled?|disabled?|none|null|auto|default"
    r"|-?\d{1,9}(\.\d+)?|v?\d+(\.\d+){1,3}|\d{4}-\d{2}-\d{2}"
    r"|trace|debug|verbose|info|notice|warn|warning|error|critical|fatal|silent|quiet"
    r"|dev|development|test|testing|staging|prod|production|local|stdio|sse|(streamable-)?http|json|text|plain|utf-?8"
    r"|(application|text)/[a-z0-9.+-]+(,\s*(application|text)/[a-z0-9.+-]+)*"
    r"|https?://[A-Za-z0-9.-]+(:\d+)?(/api|/v\d+)*/?",
    re.IGNORECASE,
)
"""Switches, numbers, versions and dates, levels, modes, media types, addresses of services."""
_HARMLESS_NAME = re.compile(
    r"(^|_)(region|zone|mode|level|lang|language|locale|env|environment|format|model|provider|tz|timezone|type|driver)$"
)
_PLAIN_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/:-]{0,63}")


def looks_secret(name: str, value: object = "") -> bool:
    """Whether a variable, header or flag carries a credential, by its name or by the look of its value."""
    plain = re.sub(r"[-. ]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)).lower()
    text = str(value)
    return bool(_CREDENTIAL_NAME.search(plain) or _CREDENTIAL_VALUE.fullmatch(text) or _RANDOM_TEXT.fullmatch(text))


def is_secret_beside(name: str, text: str) -> bool:
    """Whether a text carries a credential although parts of it, written `$` here, are asked for.

    With a name that says so everything does but its scheme (`Bearer $`) and names in front of values (`session=$`).
    """
    if looks_secret(name):
        return _BESIDE_A_REFERENCE.fullmatch(text) is None
    return any(looks_secret(match[1]) for match in _NAMED_VALUE.finditer(text)) or any(
        looks_secret("", word) for word in re.split(r"""[\s"',;&=$]+""", text)
    )


def is_harmless(value: str, name: str = "") -> bool:
    """Whether a value is nobody's: a switch, a number, a level, the address of a service, or a word under a name that
    asks for no more, such as AWS_REGION."""
    plain = value.strip()
    if _HARMLESS_NAME.search(name.replace("-", "_").lower()) and _PLAIN_WORD.fullmatch(plain):
        return not looks_secret(name, plain)
    return _HARMLESS.fullmatch(plain) is not None


def is_placeholder(value: str) -> bool:
    """Whether a value only says that something has to be put in its place: `<token>`, `YOUR_KEY`, empty text."""
    return _PLACEHOLDER.fullmatch(value.strip()) is not None


class ManifestBuilder:
    """Grows one manifest. Every name is taken once; asking for it again gives the same credential or setting."""

    def __init__(self, name: str, *, title: str, description: str = "") -> None:
        self._name = name
        self._title = title
        self._description = description
        self._secrets: dict[str, dict[str, Any]] = {}
        self._settings: dict[str, dict[str, Any]] = {}
        self._required: list[str] = []
        self._env: dict[str, str] = {}
        self._notes: list[str] = []
        self.command: list[str] = []
        self.extra: Manifest = {}
        """What goes into the manifest as it is."""

    @property
    def name(self) -> str:
        return self._name

    def secret(self, env: str, *, required: bool = True, description: str = "") -> str:
        """A credential in this variable; gives the text that stands for it."""
        stated = {"description": description} if description else {}
        self._secrets.setdefault(
            env, {"name": f"{self._name}.{env.lower()}", "env": env, "required": required, **stated}
        )
        return f"${{{env}}}"

    def setting(
        self, name: str, schema: Mapping[str, Any] | None = None, *, required: bool = False, into: bool = False
    ) -> str:
        """A setting of the caller's; gives the template that stands for it, as any number of list items for `into`."""
        key = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-") or "value"
        if key not in self._settings:
            self._settings[key] = {"type": "string", **(schema or {})}
            if required:
                self._required.append(key)
        return f"{{{{{self._name.replace('.', '_')}.{key}{'|into' if into else ''}}}}}"

    def set_env(self, name: str, value: str) -> None:
        self._env[name] = value

    def note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)

    def header_secret(self, header: str, value: str) -> str:
        """The text that stands for a header whose value is a credential; its scheme (`Bearer`) is kept."""
        scheme = re.match(r"(Bearer|Basic|Token|ApiKey)\s+", value, re.IGNORECASE)
        name = "TOKEN" if header.lower() == "authorization" else header
        return f"{scheme.group(0) if scheme else ''}{self.secret(variable_name(self._name, name))}"

    def build(self) -> Manifest:
        manifest: Manifest = {"name": self._name, "title": self._title, "type": "server", **self.extra}
        if self._description:
            manifest["description"] = self._description
        if self.command:
            manifest["command"] = self.command
        manifest["env"] = [{"name": name, "value": value} for name, value in self._env.items()]
        manifest["secrets"] = list(self._secrets.values())
        if self._settings:
            manifest["config"] = {"properties": self._settings} | (
                {"required": self._required} if self._required else {}
            )
        if self._notes:
            manifest["notes"] = self._notes
        return manifest
