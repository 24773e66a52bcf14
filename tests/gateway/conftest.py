"""One gateway process for each test module; each test gives it a configuration of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.running_gateway import TOKEN, RunningGateway, running_gateway


@pytest.fixture(scope="module")
def gateway_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture
def gateway(gateway_process: RunningGateway) -> Iterator[RunningGateway]:
    gateway_process.tokens = [TOKEN]
    yield gateway_process
    gateway_process.put_config({})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path
