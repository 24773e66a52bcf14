"""The manifest of one MCP server: `catalog/servers/*.yaml`, in the style of Docker's MCP catalog.

These classes are the format: `catalog/schema.json` is generated from them (`python -m app.catalog.schema`). Every
definition that exists is consistent; in particular none can put a credential into a URL, a path or the workspace, where
others could read it. One that was imported may hold more than Sandgate runs, so that nothing of it is lost:
`app.catalog.objections` says what keeps it from being used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, JsonValue, StringConstraints, ValidationInfo, model_validator
from pydantic.alias_generators import to_camel

from app.catalog import names, templates
from app.catalog.container_tools import ContainerTool, faults_of, unknown_arguments
from app.catalog.manifest_parts import ConfigObject, Items, ManifestPart, Text, refuse, refuse_duplicates
from app.catalog.package import Package
from app.catalog.templates import Reference, TemplateError

Capability: TypeAlias = Literal[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
]
"""Those that mean nothing outside the container: Docker's default set without NET_RAW and MKNOD."""

Placement: TypeAlias = Literal["gateway", "workspace"]
"""Where a package server runs: beside the gateway, away from the agent, or in the workspace, with the agent's files."""

CONTEXT_ROOT = "sandbox"
"""Templates may use `{{sandbox.home}}`: the directory a server may write to, wherever it is placed."""

EnvName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_IMPORTED = {"imported": True}
"""Validation context of a definition that somebody else wrote for another gateway."""

HttpUrl = Annotated[str, StringConstraints(pattern=r"^https?://[^\s]+$")]


class Remote(ManifestPart):
    """A server that runs elsewhere and speaks MCP over HTTP."""

    url: HttpUrl
    transport_type: Literal["streamable-http", "sse"] = Field(alias="transport_type")
    headers: Mapping[Annotated[str, StringConstraints(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")], str] = {}
    """Sent with every request. `${NAME}` takes a credential by its variable; a header that lacks one is left out."""
    allow_private: bool = False
    """Whether plain HTTP and addresses that are not public will do, as for a server in the operator's own network."""


class EnvVar(ManifestPart):
    """A variable of the server's environment; one whose value comes out empty is not set."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")]
    value: str


class Secret(ManifestPart):
    """A credential, given to the server in its environment and nowhere else."""

    name: Text
    """`<server>.<what>`, as in Docker's catalog."""
    env: EnvName
    description: str = ""
    required: bool = True
    obtain_at: HttpUrl | None = None
    """The page where one gets the credential."""
    example: str | None = None


class Limits(ManifestPart):
    """What the server needs beyond the installation's defaults."""

    memory_mib: Annotated[int, Field(ge=16)] | None = None
    cpus: Annotated[float, Field(gt=0)] | None = None
    pids: Annotated[int, Field(ge=8)] | None = None


class OAuthProvider(ManifestPart):
    provider: Text
    secret: Text
    env: EnvName


class OAuth(ManifestPart):
    providers: Items[OAuthProvider]
    scopes: Items[str] = ()


class Dynamic(ManifestPart):
    tools: bool = False
    """The tools depend on who asks, so a list of them is never remembered."""


class ServerDefinition(ManifestPart):
    """One MCP server of the catalog."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """The catalog name. Also accepted wherever the key is."""
    stated_key: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")] | None = Field(
        default=None, alias="key"
    )
    """What callers write in `mcp`; by default the name under the rule of E2B's SDKs: `github-official` ->
    `githubOfficial`."""
    aliases: Items[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]] = ()
    """Further names for the key."""
    title: Text
    description: str = ""
    type: Literal["server", "remote", "poci"]
    """`server`: `image` or `package` says what runs. `remote`: `remote` says where it is. `poci`: each of its `tools`
    runs a container per call."""
    image: Text | None = None
    """Image reference; the server runs in a container of its own."""
    package: Package | None = None
    """Where the command comes from; the server runs as `placement` says."""
    remote: Remote | None = None
    command: Items[str] = ()
    """Package: the program, by the name the package gives it, and its arguments. Image: arguments after the image's
    entrypoint."""
    cwd: str | None = None
    """Working directory of a package server."""
    env: Items[EnvVar] = ()
    secrets: Items[Secret] = ()
    config: ConfigObject | None = None
    """What callers can set beside credentials: one JSON Schema with defaults."""
    placement: Placement = "gateway"
    """Where a package server runs. `workspace` for one that works on the agent's files; it can have no credentials."""
    start_timeout_s: Annotated[float, Field(gt=0, le=600)] | None = None
    """Seconds the server may take to answer `initialize`, if it needs more than the installation's default."""
    allow_hosts: Items[Text] = ()
    """`host:port` the server talks to, if known."""
    limits: Limits = Limits()
    user: str | None = None
    """User (and group) an image server runs as."""
    volumes: Items[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*:/[^:]+$")]] = ()
    """`<name>:<path>` of an image server: storage that belongs to the sandbox. Never a path of the host."""
    operator_volumes: Items[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*:/[^:]+(:ro)?$")]
    ] = ()
    """`<name>:<path>[:ro]` of an image server: storage that the operator made on the container engine as the volume
    `sandgate-own-<name>`, the same for every sandbox. Imported definitions cannot ask for it."""
    capabilities: Items[Capability] = ()
    """Linux capabilities an image server keeps, where all are dropped otherwise. Imported definitions cannot ask for
    them."""
    host_paths: Items[Text] = ()
    """`<path of the host>:<path>[:ro]` that an image server would mount, with templates; refused when it is used."""
    host_access: Mapping[str, JsonValue] = {}
    """Further access to the host that an image server would have, by Docker's words: `privileged`, `capAdd`, …; refused
    when it is used."""
    tools: Items[ContainerTool] = ()
    """Of type `poci`."""
    disable_network: bool = False
    """The image server, or each of the container tools, works without any network."""
    long_lived: bool = False
    """Docker's wish to keep one process per client; here every server is kept for as long as the sandbox lives."""
    dynamic: Dynamic = Dynamic()
    oauth: OAuth | None = None
    category: str | None = None
    tags: Items[str] = ()
    homepage: HttpUrl | None = None
    license: str | None = None
    """SPDX expression."""
    notes: Items[str] = ()
    """What a caller should know before using it, such as what an import could not take over."""
    annotations: Mapping[str, JsonValue] = {}
    """Further facts for people and programs; Sandgate does not act on them."""
    verified: bool = False
    """Whether this version was started and its tools listed by Sandgate's own tests."""

    @property
    def key(self) -> str:
        return self.stated_key or names.server_key(self.name)

    @property
    def context_name(self) -> str:
        """What its templates call the server (`eval.Evaluate` of Docker's gateway: a dot would start a path)."""
        return self.name.replace(".", "_")

    @property
    def usable_tools(self) -> tuple[ContainerTool, ...]:
        """Of type `poci`: those that can be called. Only an imported definition has others."""
        return tuple(tool for tool in self.tools if not any(faults_of(tool)))

    @property
    def images(self) -> frozenset[str]:
        """What has to be on the container engine for it."""
        own = () if self.image is None else (self.image,)
        return frozenset((*own, *(tool.container.image for tool in self.usable_tools)))

    @classmethod
    def imported(cls, manifest: object) -> Self:
        """A definition from elsewhere. Templates that name nothing and arguments that expose a credential are kept, for
        `app.catalog.objections` to tell. Raises: pydantic.ValidationError.
        """
        return cls.model_validate(manifest, context=_IMPORTED)

    def unknown_references(self) -> Iterator[tuple[str, Reference]]:
        """Templates that name nothing in `config`, or no parameter of their tool, and so come out empty, each with its
        field."""
        for field, text in self.texts():
            for part in templates.parse(text):
                if isinstance(part, Reference) and part.path[0] == self.context_name and not self._knows(part.path):
                    yield field, part
        for tool in self.usable_tools:
            yield from ((f"tools.{tool.name}.{field}", reference) for field, reference in unknown_arguments(tool))

    def exposures(self) -> Iterator[tuple[str, str]]:
        """Fields that would show a credential to others, each with the variable. Arguments show in process lists, URLs
        in logs."""
        carriers = {secret.env for secret in self.secrets}
        for item in self.env:
            if not carriers.isdisjoint(templates.variables_in(item.value)):
                carriers.add(item.name)
        for field, text in self.texts():
            if field not in ("env", "headers"):
                yield from ((field, name) for name in sorted(carriers.intersection(templates.variables_in(text))))

    @model_validator(mode="after")
    def _is_consistent(self, info: ValidationInfo) -> Self:
        imported = info.context is _IMPORTED
        self._check_kind()
        self._check_names()
        self._check_unique()
        self._check_tools(faulty_allowed=imported)
        if self.config is not None:
            self.config.check()
        self._check_templates(unknown_allowed=imported)
        self._check_credentials(arguments_allowed=imported and self.image is not None)
        if imported and self.operator_volumes:
            refuse(
                "operatorVolumes", "only a definition of the operator's own may name volumes of the container engine"
            )
        if imported and self.capabilities:
            refuse("capabilities", "only a definition of the operator's own may keep capabilities")
        return self

    def _check_kind(self) -> None:
        if (self.type == "poci") != bool(self.tools):
            refuse("tools", "a definition of type poci has tools, and no other has")
        kinds = [kind for kind in ("image", "package", "remote") if getattr(self, kind) is not None]
        expected = {"remote": ["remote"], "server": ["image", "package"], "poci": []}[self.type]
        if self.type == "poci" and kinds:
            refuse("type", f"a definition of type poci has no {kinds[0]}")
        if self.type != "poci" and (len(kinds) != 1 or kinds[0] not in expected):
            refuse("type", f"a definition of type {self.type} has exactly one of: {', '.join(expected)}")
        if self.package:
            self._check_program()
        if self.remote and self.command:
            refuse("command", "a remote server has no command")
        if self.cwd is not None and not self.package:
            refuse("cwd", "only a package server has a working directory of its choice")
        only_of_images = ("volumes", "operator_volumes", "host_paths", "host_access", "capabilities")
        for field in (*only_of_images, "user"):
            if getattr(self, field) and not self.image:
                refuse(to_camel(field), "only an image server can have it")
        if self.disable_network and not (self.image or self.tools):
            refuse("disableNetwork", "only an image server or a definition of type poci can have it")
        if self.tools and self.command:
            refuse("command", "a definition of type poci has none of its own: its tools have")
        if self.placement == "workspace" and not self.package:
            refuse("placement", "only a package server can be placed in the workspace")

    def _check_program(self) -> None:
        if not self.command:
            refuse("command", "a package server needs its command, the program first")
        if "{{" in self.command[0]:
            refuse("command", "begins with the name of a program of the package")

    def _check_names(self) -> None:
        if self.context_name == CONTEXT_ROOT:
            refuse("name", f"{CONTEXT_ROOT} is reserved for templates")
        if not self.key:
            refuse("name", "leaves nothing for a key; state a `key`")

    def _check_unique(self) -> None:
        refuse_duplicates("env", [*(secret.env for secret in self.secrets), *(item.name for item in self.env)])
        leaves = self.config.leaves() if self.config else ()
        properties = [names.secret_property(self.name, secret.env) for secret in self.secrets]
        properties += [names.config_property(path) for path, _ in leaves]
        refuse_duplicates("config", properties)

    def _check_tools(self, *, faulty_allowed: bool) -> None:
        refuse_duplicates("tools", [tool.name for tool in self.tools])
        if not faulty_allowed:
            for tool in self.tools:
                for fault in faults_of(tool):
                    refuse(f"tools.{tool.name}.{fault.field}", fault.reason)

    def _check_templates(self, *, unknown_allowed: bool) -> None:
        known = {secret.env for secret in self.secrets}
        for item in self.env:
            self._check_text("env", item.value, known)
            known.add(item.name)
        for field, text in self.texts():
            if field != "env":
                self._check_text(field, text, known)
        if not unknown_allowed:
            for field, reference in self.unknown_references():
                refuse(field, f"{reference} names {'no parameter' if self.tools else 'nothing in config'}")

    def _check_text(self, field: str, text: str, known_variables: set[str]) -> None:
        try:
            parts = templates.parse(text)
        except TemplateError as error:
            refuse(field, str(error))
        for part in parts:
            if isinstance(part, Reference):
                self._check_reference(field, part)
        for variable in templates.variables_in(text):
            if variable not in known_variables:
                refuse(field, f"${variable} is no credential of this server and no variable set before")

    def _check_reference(self, field: str, reference: Reference) -> None:
        if reference.path[0] == CONTEXT_ROOT:
            if reference.path[1:] != ("home",):
                refuse(field, f"{reference}: only {{{{{CONTEXT_ROOT}.home}}}} is known")
        elif reference.path[0] != self.context_name:
            refuse(field, f"{reference} does not start with the server's name, {self.context_name}")

    def _knows(self, path: tuple[str, ...]) -> bool:
        return len(path) > 1 and self.config is not None and self.config.at(path[1:]) is not None

    def _check_credentials(self, *, arguments_allowed: bool) -> None:
        for field, variable in self.exposures():
            if field != "command" or not arguments_allowed:
                refuse(
                    field, f"would expose the credential in ${variable}; the server must read it from its environment"
                )
        if self.placement == "workspace" and self.secrets:
            refuse("placement", "a server with credentials stays out of the workspace, whose user could read them")

    def texts(self) -> Iterator[tuple[str, str]]:
        """Every text that may hold templates, with its field."""
        yield from (("env", item.value) for item in self.env)
        yield from (("command", item) for item in self.command)
        if self.cwd is not None:
            yield "cwd", self.cwd
        if self.user is not None:
            yield "user", self.user
        yield from (("hostPaths", item) for item in self.host_paths)
        if self.remote is not None:
            yield "url", self.remote.url
            yield from (("headers", value) for value in self.remote.headers.values())
