"""Who may use /files, and as which user.

What does the work is imported when it is first needed: parsers of forms, dates and media types are a megabyte that a
sandbox without uploads and downloads would hold for nothing.
"""

from sandgate_agent.acting_as import FileThreads
from sandgate_agent.asgi import Request
from sandgate_agent.configuration import ConfigurationHolder
from sandgate_agent.files.signatures import check_signature
from sandgate_agent.files.targets import UploadTargets
from sandgate_agent.users import User, find_user


class FilesEndpoint:
    def __init__(self, configuration: ConfigurationHolder, threads: FileThreads) -> None:
        self._configuration = configuration
        self._threads = threads
        self._targets = UploadTargets()

    async def download(self, request: Request) -> None:
        from sandgate_agent.files.download import send_download  # noqa: PLC0415

        await send_download(request, self._admit(request, "read"), self._threads)

    async def upload(self, request: Request) -> None:
        from sandgate_agent.files.upload import receive_upload  # noqa: PLC0415

        await receive_upload(request, self._admit(request, "write"), self._threads, self._targets)

    async def compose(self, request: Request) -> None:
        """For callers with the access token: a signature is for one path."""
        from sandgate_agent.files.compose import compose_files  # noqa: PLC0415

        await compose_files(request, self._configuration.current.default_user, self._threads)

    def _admit(self, request: Request, operation: str) -> User:
        """By access token or by signature; a right signature does not mend a wrong token. Raises: Unauthenticated."""
        current = self._configuration.current
        token = request.headers.get("x-access-token")
        if token is None:
            check_signature(request.query, operation, current.access_token)
        else:
            self._configuration.check_access_token(token)
        return find_user(request.query.get("username") or current.default_user)
