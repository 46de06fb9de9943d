"""`llamactl serve` and `worker` with certificates, as people use them."""

from __future__ import annotations

import json
import signal
import ssl
import urllib.request
from pathlib import Path

import pytest
from tests.e2e.llamactl import ANY_PORTS, PATIENCE, llamactl, started
from tests.servers.certificates import Authority, Certificate


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def options(certificate: Certificate) -> list[str]:
    return ["--tls-cert", str(certificate.certificate), "--tls-key", str(certificate.key)]


def test_serve_and_worker_over_mutual_tls(folder: Path, tmp_path: Path, authority: Authority) -> None:
    own = authority.issue("server")
    mutual = [*options(own), "--tls-client-ca", str(authority.file)]
    trusting = {"LLAMA_DEPLOY_CA": str(authority.file)}
    client = authority.issue("client")
    shown = {
        "LLAMA_DEPLOY_CLIENT_CERT": str(client.certificate),
        "LLAMA_DEPLOY_CLIENT_KEY": str(client.key),
    }
    data = ["--data-dir", str(tmp_path / "data"), "--json"]
    with started(folder, "serve", "cli_app:repeat", *ANY_PORTS, *mutual, *data, env=shown) as served:
        facts = json.loads(served.line())
        url = facts["control_plane_url"]
        assert url.startswith("https://127.0.0.1:")
        assert facts["message_queue_url"].startswith("https://127.0.0.1:")
        assert facts["processes"] != [facts["pid"]], "a child has joined over TLS"
        refused = llamactl(folder, "worker", "cli_app:Count", server=url, env=trusting)
        assert refused.returncode == 1
        assert "set LLAMA_DEPLOY_CLIENT_CERT and LLAMA_DEPLOY_CLIENT_KEY" in refused.stderr
        worker = ["-s", url, "worker", "cli_app:Count", "--port", "0", *options(own), "--json"]
        with started(folder, *worker, env=trusting | shown) as process:
            joined = json.loads(process.line())
            assert joined["services"][0]["url"].startswith("https://")
            assert joined["health_url"].startswith("https://")
            context = ssl.create_default_context(cafile=authority.file)
            live = joined["health_url"].replace("ready", "live")
            with urllib.request.urlopen(live, timeout=PATIENCE, context=context) as answer:  # noqa: S310 - https
                assert answer.status == 200
            done = llamactl(folder, "run", "repeat", "message=hi", server=url, env=trusting | shown)
            assert done.stdout.splitlines()[-1] == "hi", done.stderr
            untrusted = llamactl(folder, "status", server=url, env=shown)
            assert untrusted.returncode == 3
            assert "the certificate of the server is not trusted" in untrusted.stderr
            assert "llamactl serve" not in untrusted.stderr
            assert process.end(signal.SIGTERM)[0] == 0
        assert served.end(signal.SIGINT)[0] == 0


def test_files_that_cannot_be_used_are_told_at_the_start(folder: Path, authority: Authority) -> None:
    own, other = authority.issue("server"), authority.issue("other")
    wrong = ["--tls-cert", str(own.certificate), "--tls-key", str(other.key)]
    for command in (
        ["serve", "cli_app:repeat", *ANY_PORTS, *wrong],
        ["worker", "cli_app:repeat", "--port", "0", *wrong],
    ):
        done = llamactl(folder, *command)
        assert done.returncode == 1
        assert f"the key '{other.key}' (tls_key) does not belong to" in done.stderr
    alone = llamactl(folder, "serve", *ANY_PORTS, *options(own), "--tls-client-ca", str(authority.file))
    assert alone.returncode == 2
    assert "the services of this command need a client certificate too" in alone.stderr
