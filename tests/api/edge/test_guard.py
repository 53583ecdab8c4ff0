"""Who may talk to the server: Host, Origin, token, session; and what every answer carries."""

import itertools
import stat

import httpx
import pytest

from kickstand.main import bind, create_app, serve
from kickstand.settings import Settings, SettingsError
from tests.api.live import assert_problem, live

TOKEN = "correct-horse-battery-staple"


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return path


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:1", "localhost", "LOCALHOST:8000", "[::1]", "[::1]:9", "::1"])
async def test_every_name_of_loopback_is_this_server(client, host):
    assert (await client.get("/healthz", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "testserver", "localhost.evil.example", "127.0.0.1.nip.io", "192.168.0.1", "localhost:", ""],
)
@pytest.mark.parametrize("path", ["/healthz", "/vm", "/"])
async def test_any_other_host_is_refused_even_for_open_paths(client, host, path):
    response = await client.get(path, headers={"Host": host})
    assert response.status_code in (400, 403)
    assert_problem(response, response.status_code, "EINVAL" if response.status_code == 400 else "EACCES")


@pytest.mark.slow
async def test_a_configured_name_and_the_bound_host_are_allowed(token_file):
    app = create_app(Settings(host="0.0.0.0", token_file=token_file, allowed_hosts=("kick.example",)))
    transport = httpx.ASGITransport(app)
    for host, status in [("kick.example", 200), ("0.0.0.0", 200), ("10.1.2.3", 200), ("evil.example", 403)]:
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}:8000") as client:
            assert (await client.get("/healthz")).status_code == status, host


ORIGINS = {
    None: True,
    "own": True,
    "null": False,
    "http://evil.example": False,
    "https-own": False,
    "other-port": False,
}
SITES = {None: True, "same-origin": True, "same-site": False, "cross-site": False, "none": False}


@pytest.mark.parametrize(("origin", "site"), list(itertools.product(ORIGINS, SITES)))
async def test_a_page_of_another_origin_cannot_kick(server, client, origin, site):
    own = f"127.0.0.1:{server.port}"
    value = {"own": f"http://{own}", "https-own": f"https://{own}", "other-port": "http://127.0.0.1:1"}.get(
        origin, origin
    )
    headers = {"Origin": value, "Sec-Fetch-Site": site}
    response = await client.post("/vm/resume", headers={k: v for k, v in headers.items() if v is not None})
    if ORIGINS[origin] and SITES[site]:
        assert response.status_code == 200
    else:
        assert_problem(response, 403, "EACCES")


HOSTS = {"own": True, "localhost": True, "evil.example": False, "own.evil.example": False}
PAGES = {None: True, "own": True, "null": False, "http://evil.example": False, "rebound": False}
TOKENS = {f"Bearer {TOKEN}": True, "Bearer guess": False, None: False}
TYPES = {
    "application/json": 200,
    "application/problem+json": 200,
    None: 415,
    "text/plain": 415,
    "application/x-www-form-urlencoded": 415,
    "multipart/form-data; boundary=x": 415,
}


@pytest.mark.slow
async def test_host_origin_token_and_content_type_all_have_to_be_right(token_file):
    """``rebound``: the page's name resolves to this machine, so that its origin and the Host header agree."""
    async with live(token_file=token_file) as server, server.client() as client:
        for host, page, token, kind in itertools.product(HOSTS, PAGES, TOKENS, TYPES):
            name = {"own": f"127.0.0.1:{server.port}", "localhost": f"localhost:{server.port}"}.get(host, host)
            origin = {"own": f"http://{name}", "rebound": "http://evil.example"}.get(page, page)
            given = {"Host": name, "Origin": origin, "Authorization": token, "Content-Type": kind}
            headers = {key: value for key, value in given.items() if value is not None}
            response = await client.post("/vm/kick", content=b'{"timeout_ms": 1000}', headers=headers)
            wanted = 403 if not (HOSTS[host] and PAGES[page]) else 401 if not TOKENS[token] else TYPES[kind]
            assert response.status_code == wanted, (host, page, token, kind, response.text)
            if wanted != 200:
                assert_problem(response, wanted, "EINVAL" if wanted == 415 else "EACCES")
        assert (
            server.registry.get("default").window.kick_id == 1
        )  # the first of those that were right opened the window


@pytest.mark.parametrize("path", ["/vm/kick", "/vm/resume", "/vm/snapshot", "/reset", "/vcpu/0/run", "/vm/script"])
async def test_a_form_of_another_site_changes_nothing(client, path):
    headers = {
        "Origin": "http://evil.example",
        "Sec-Fetch-Site": "cross-site",
        "Content-Type": "application/x-www-form-urlencoded",
    }
    assert_problem(await client.post(path, headers=headers, content=b""), 403, "EACCES")
    assert_problem(await client.post(path, headers=headers, content=b"a=b"), 403, "EACCES")


async def test_a_page_whose_name_was_rebound_to_this_machine_reads_nothing(server, client):
    host = f"evil.example:{server.port}"
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    for method, path in (("GET", "/vm"), ("GET", "/events"), ("POST", "/vm/kick"), ("GET", "/"), ("GET", "/healthz")):
        assert_problem(await client.request(method, path, headers=headers), 403, "EACCES")


async def test_reading_is_not_subject_to_the_origin_check_except_where_it_changes_something(client):
    headers = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    response = await client.get("/vm", headers=headers)
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers
    assert_problem(await client.get("/vm/dirty-log/0", headers=headers), 403, "EACCES")


@pytest.mark.parametrize("path", ["/", "/vm", "/nowhere", "/docs", "/static/docs/main.js", "/metrics"])
async def test_every_answer_has_the_security_headers(client, path):
    headers = (await client.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-request-id"]
    assert "server" not in headers


@pytest.mark.slow
async def test_with_a_token_everything_but_health_and_bare_pages_wants_it(token_file):
    async with live(token_file=token_file) as server, server.client() as client:
        for path in ("/healthz", "/", "/docs", "/static/docs/main.js"):
            assert (await client.get(path)).status_code == 200, path
        for path in ("/vm", "/openapi.json", "/events", "/metrics", "/nowhere", "/readyz"):
            response = await client.get(path)
            assert_problem(response, 401, "EACCES")
            assert response.headers["www-authenticate"] == "Bearer"
        for given in (f"Bearer {TOKEN}", f"bearer {TOKEN}"):
            assert (await client.get("/vm", headers={"Authorization": given})).status_code == 200
        for given in (f"Bearer {TOKEN}x", "Bearer", "Bearer é".encode("latin-1"), f"Basic {TOKEN}"):
            assert (await client.get("/vm", headers={"Authorization": given})).status_code == 401


@pytest.mark.slow
async def test_a_one_time_code_becomes_a_session_cookie_once(token_file):
    async with live(token_file=token_file) as server, server.client() as client:
        code = server.context.sessions.code()
        headers = {"Content-Type": "application/json"}
        for guess, status, errno in ((b'{"code": "guess"}', 403, "EACCES"), (b'{"code": "\\ud800"}', 422, "EINVAL")):
            assert_problem(await client.post("/session", content=guess, headers=headers), status, errno)
        response = await client.post("/session", json={"code": code})
        assert response.status_code == 204
        cookie = response.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert (await client.post("/vm/resume")).status_code == 200
        cross = await client.post("/vm/resume", headers={"Origin": "http://evil.example"})
        assert_problem(cross, 403, "EACCES")
        assert_problem(await client.post("/session", json={"code": code}), 403, "EACCES")


@pytest.mark.slow
async def test_the_token_is_in_no_answer_and_in_no_log(token_file, caplog):
    caplog.set_level(0)
    async with live(token_file=token_file) as server, server.client() as client:
        response = await client.get("/nowhere", headers={"Authorization": f"Bearer {TOKEN}"})
        assert TOKEN not in response.text + str(response.headers)
    assert TOKEN not in "".join(r.getMessage() for r in caplog.records if r.name.startswith(("kickstand", "uvicorn")))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_an_address_that_others_reach_is_refused_without_a_token(host, token_file):
    with pytest.raises(SettingsError, match="token"):
        Settings(host=host)
    assert Settings(host=host, token_file=token_file).token() == TOKEN


def test_a_token_file_that_is_of_no_use_is_refused(tmp_path):
    (tmp_path / "empty").write_text("\n")
    for name in ("empty", "missing"):
        with pytest.raises(SettingsError, match="token file"):
            Settings(token_file=tmp_path / name).token()


@pytest.mark.parametrize("options", [{"variant": "nobody"}, {"engine": "nobody"}])
def test_a_default_vm_that_cannot_be_made_is_refused_before_anything_starts(options):
    with pytest.raises(SettingsError, match="nobody"):
        serve(Settings(port=0, **options))


def test_a_unix_socket_is_for_this_user_only_and_a_stale_one_is_replaced(tmp_path):
    settings = Settings(uds=tmp_path / "k.sock")
    bind(settings).close()
    listener = bind(settings)
    assert stat.S_IMODE(settings.uds.stat().st_mode) == 0o600
    listener.listen()
    with pytest.raises(SettingsError, match="cannot listen"):
        bind(settings)
    listener.close()


@pytest.mark.slow
async def test_a_unix_socket_serves(tmp_path):
    path = tmp_path / "k.sock"
    settings = Settings(uds=path)
    async with live_uds(settings) as client:
        assert (await client.get("/vm")).json()["id"] == "default"
    assert not path.exists()


def live_uds(settings):
    import contextlib

    from kickstand.main import Server

    @contextlib.asynccontextmanager
    async def serving():
        listener = bind(settings)
        server = Server(create_app(settings))
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup(sockets=[listener])
        transport = httpx.AsyncHTTPTransport(uds=str(settings.uds))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client
        await server.shutdown(sockets=[listener])

    return serving()
