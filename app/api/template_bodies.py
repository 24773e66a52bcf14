"""What the template endpoints take and answer, as the E2B contract has it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from app.api.wire import Asked, Wire
from app.engines.builds import RegistryLogin
from app.errors import InvalidRequest

Status = Literal["waiting", "building", "ready", "error"]


class NewBuild(Asked):
    name: str | None = Field(None, description="`name` or `name:tag`.")
    alias: str | None = Field(None, description="What older SDKs send instead of `name`.")
    tags: list[str] | None = Field(None, max_length=100)
    cpu_count: int | None = None
    memory_mb: int | None = Field(None, alias="memoryMB")


class NewBuildAnswer(Wire):
    template_id: str = Field(alias="templateID")
    build_id: str = Field(alias="buildID")
    public: bool
    names: list[str]
    tags: list[str]
    aliases: list[str]


class FileUpload(Wire):
    present: bool
    url: str = Field(description="Where to PUT a tar of the files, with gzip or without; no API key is needed.")


class StepBody(Wire):
    type: str
    args: list[str] = Field(default_factory=list)
    files_hash: str | None = None
    force: bool | None = False


class Registry(Wire):
    """Credentials for one pull of `fromImage`. They are not kept."""

    type: Literal["registry", "aws", "gcp"]
    username: str | None = None
    password: str | None = Field(None, repr=False)
    service_account_json: str | None = Field(None, repr=False)

    def login(self) -> RegistryLogin:
        """Raises: InvalidRequest."""
        match self.type:
            case "registry" if self.username is not None and self.password is not None:
                return RegistryLogin(username=self.username, password=self.password)
            case "gcp" if self.service_account_json is not None:
                # https://cloud.google.com/artifact-registry/docs/docker/authentication#json-key
                return RegistryLogin(username="_json_key", password=self.service_account_json)
            case "aws":
                raise InvalidRequest(
                    "fromImageRegistry: keys of AWS are not exchanged for a registry token here. Use type registry with"
                    " username AWS and the output of `aws ecr get-login-password` as password."
                )
            case _:
                raise InvalidRequest(f"fromImageRegistry: credentials for type {self.type} are missing.")


class StartBuild(Asked):
    from_image: str | None = None
    from_template: str | None = None
    from_image_registry: Registry | None = None
    force: bool | None = False
    steps: list[StepBody] | None = None
    start_cmd: str | None = None
    ready_cmd: str | None = None


class LogEntry(Wire):
    timestamp: str
    message: str
    level: Literal["debug", "info", "warn", "error"]
    step: str | None = None


class FailureReason(Wire):
    message: str
    step: str | None = Field(None, description="`base`, `finalize`, or the number of a step, counted from 1.")
    log_entries: list[LogEntry]


class BuildInfo(Wire):
    template_id: str = Field(alias="templateID")
    build_id: str = Field(alias="buildID")
    status: Status
    logs: list[str] = Field(default_factory=list, description="Always empty; see `logEntries`.")
    log_entries: list[LogEntry]
    reason: FailureReason | None = None


class BuildLogs(Wire):
    logs: list[LogEntry]


class AliasAnswer(Wire):
    template_id: str = Field(alias="templateID")
    public: bool


class AssignTags(Wire):
    target: str = Field(description="`name:tag` of the build.")
    tags: list[str] = Field(max_length=100)


class RemoveTags(Wire):
    name: str
    tags: list[str] = Field(max_length=100)


class AssignedTags(Wire):
    tags: list[str]
    build_id: str = Field(alias="buildID")


class TagAnswer(Wire):
    tag: str
    build_id: str = Field(alias="buildID")
    created_at: str


class ListedTemplate(Wire):
    template_id: str = Field(alias="templateID")
    build_id: str = Field(alias="buildID")
    cpu_count: int
    memory_mb: int = Field(alias="memoryMB")
    disk_size_mb: int = Field(alias="diskSizeMB")
    public: bool
    aliases: list[str]
    names: list[str]
    created_at: str
    updated_at: str
    created_by: None
    last_spawned_at: str | None
    spawn_count: int
    build_count: int
    envd_version: str
    build_status: Status
    is_default: bool


class ListedBuild(Wire):
    build_id: str = Field(alias="buildID")
    status: Status
    created_at: str
    updated_at: str
    finished_at: str | None = None
    cpu_count: int
    memory_mb: int = Field(alias="memoryMB")
    disk_size_mb: int = Field(alias="diskSizeMB")
    envd_version: str


class TemplateDetail(ListedTemplate):
    builds: list[ListedBuild]


class TemplateChange(Wire):
    public: bool | None = None


class ChangedTemplate(Wire):
    names: list[str]
