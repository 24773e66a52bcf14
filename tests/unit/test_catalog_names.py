"""Keys and property names under the rules of E2B's SDKs; the examples are entries of their published specification."""

from __future__ import annotations

import pytest

from app.catalog.names import camel_case, config_property, nearest, secret_property, server_key


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("exa", "exa"),
        ("SQLite", "sqlite"),
        ("github-official", "githubOfficial"),
        ("airtable-mcp-server", "airtable"),
        ("gmail-mcp", "gmail"),
        ("mcp-hackernews", "hackernews"),
        ("mcp-api-gateway", "apiGateway"),
        ("youtube_transcript", "youtubeTranscript"),
        ("osp_marketing_tools", "ospMarketingTools"),
        ("database-server", "databaseServer"),
        ("rust-mcp-filesystem", "rustMcpFilesystem"),
        ("aws-kb-retrieval-server", "awsKbRetrievalServer"),
        ("kafka-schema-reg-mcp", "kafkaSchemaReg"),
        ("context7", "context7"),
        ("schemacrawler-ai", "schemacrawlerAi"),
    ],
)
def test_the_key_of_a_server_follows_from_its_catalog_name(name: str, key: str) -> None:
    assert server_key(name) == key


@pytest.mark.parametrize(
    ("server", "env", "expected"),
    [
        ("exa", "EXA_API_KEY", "apiKey"),
        ("github", "GITHUB_PERSONAL_ACCESS_TOKEN", "personalAccessToken"),
        ("github-official", "GITHUB_PERSONAL_ACCESS_TOKEN", "githubPersonalAccessToken"),
        ("airtable-mcp-server", "AIRTABLE_API_KEY", "airtableApiKey"),
        ("short-io", "SHORT_IO_API_KEY", "shortIoApiKey"),
        ("notion", "INTERNAL_INTEGRATION_TOKEN", "internalIntegrationToken"),
        ("atlassian", "JIRA_API_TOKEN", "jiraApiToken"),
        ("schemacrawler-ai", "SCHCRWLR_DATABASE_USER", "schcrwlrDatabaseUser"),
    ],
)
def test_the_property_of_a_credential_comes_from_its_variable(server: str, env: str, expected: str) -> None:
    assert secret_property(server, env) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("confluence", "url"), "confluenceUrl"),
        (("url_connection", "jdbc_url"), "urlConnectionJdbcUrl"),
        (("nodeenv",), "nodeenv"),
        (("SchemaPath",), "SchemaPath"),
        (("VECTRA_CLIENT_ID",), "VECTRACLIENTID"),
        (("gadget-images",), "gadgetImages"),
    ],
)
def test_the_property_of_a_setting_comes_from_its_path(path: tuple[str, ...], expected: str) -> None:
    assert config_property(path) == expected


def test_a_run_of_separators_counts_once_and_one_at_the_end_vanishes() -> None:
    assert camel_case("a-_ .b--c_") == "aBC"


@pytest.mark.parametrize("written", ["github_official", "githubofficial", "GithubOficial"])
def test_the_nearest_name_survives_case_separators_and_a_slip(written: str) -> None:
    assert nearest(written, ["github", "githubOfficial", "gitlab"]) == "githubOfficial"


def test_nothing_is_offered_when_nothing_is_like_it() -> None:
    assert nearest("zzz", ["github", "gitlab"]) is None
