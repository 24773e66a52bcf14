"""What is known of a server's lists while they change."""

from collections.abc import Iterable
from typing import Any

from sandgate_gateway.servers.catalogue import Catalogue

from tests.gateway.memory_connection import MemoryConnection, Message


async def test_a_change_that_is_told_while_a_list_is_on_its_way_makes_it_be_read_again() -> None:
    names = iter(("old", "new"))

    def answers(message: Message) -> Iterable[Message]:
        name = next(names)
        yield {"id": message["id"], "result": {"tools": [{"name": name}]}}
        if name == "old":  # it changes with the answer written and not yet read
            yield {"method": "notifications/tools/list_changed"}

    def heard(method: str, params: dict[str, Any]) -> None:
        catalogue.invalidate("tools")

    catalogue = Catalogue(lambda: None)
    connection = MemoryConnection(answers, listener=heard, capabilities={"tools": {"listChanged": True}})
    await catalogue.refresh("tools", connection)
    assert list(catalogue.items("tools")) == ["old"]
    for _ in range(2):  # what is good is not asked for again
        await catalogue.refresh("tools", connection)
        assert list(catalogue.items("tools")) == ["new"]
    assert connection.methods() == ["tools/list"] * 2
