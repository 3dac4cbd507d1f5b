from pathlib import Path

from fixtures import api, declared_database
from managing import World

from broker.tools.demo_parties import prepare
from broker.tools.identities import SOURCES
from broker.tools.samples import CATALOGUE
from subscriptions.directory import load

url = declared_database()
bode = api()


async def test_demo_registries_describe_their_types_and_accept_any_data(bode: World, tmp_path: Path) -> None:
    identities = await prepare(bode.engine, tmp_path)
    again = await prepare(bode.engine, tmp_path)
    assert again == identities
    key = identities.providers["gemeente"].key
    listed = (await bode.call("GET", "/event-types?limit=500", key=key)).json["results"]
    assert sorted(each["type"] for each in listed) == sorted(kind.type for kind in CATALOGUE)
    assert {each["type"].split(".")[1] for each in listed} == set(SOURCES)
    for each in listed:
        assert (each["validation"], each["filterAttributes"], each["version"]) == ("off", None, 1)
        assert each["dataSchema"]["properties"]
        assert each["registry"] == identities.registries[each["type"].split(".")[1]].oin
    _, directory = await load(bode.engine)
    assert not any(directory.validated(kind.type) for kind in CATALOGUE)
