import pytest


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_it_makes_a_pair_and_says_what_is_next(opu_command, tmp_path):
    outcome = opu_command("keygen", "server", "--to", "keys")
    assert outcome.status == 0
    secret, public = tmp_path / "keys/server.key", tmp_path / "keys/server.pub"
    assert (secret.stat().st_mode & 0o777, public.stat().st_mode & 0o777) == (0o600, 0o644)
    assert secret.parent.stat().st_mode & 0o777 == 0o700
    assert "opu serve URI" in outcome.out
    assert "--keys keys/server.key --allow keys/allow.toml" in outcome.out


def test_the_json_has_the_public_part_alone(opu_command, tmp_path):
    outcome = opu_command("keygen", "client", "--name", "anna", "--role", "observer", "--json")
    document = outcome.document
    assert (document["kind"], document["name"], document["role"]) == ("client", "anna", "observer")
    assert (document["secret_file"], document["public_file"]) == ("anna.key", "anna.pub")
    secret = (tmp_path / "anna.key").read_text().split('secret_key = "')[1].split('"')[0]
    assert secret not in outcome.out + outcome.err
    public = (tmp_path / "anna.pub").read_text()
    assert f'public_key = "{document["public_key"]}"' in public
    assert 'role = "observer"' in public


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (["client", "--name", "../anna"], 2, "input"),
        (["client", "--name", "anna\n"], 2, "input"),
        (["client", "--name", ""], 2, "input"),
        (["client", "--to", "file/keys"], 2, "data_file"),
        (["client", "--name", "there"], 4, "refused"),
    ],
)
def test_what_cannot_be_made(opu_command, tmp_path, arguments, status, code):
    (tmp_path / "file").write_text("x")
    (tmp_path / "there.pub").write_text("x")
    outcome = opu_command("keygen", *arguments, "--json")
    assert (outcome.status, outcome.document["error"]["code"]) == (status, code)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "there.pub"}
