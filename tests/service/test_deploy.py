"""What is given as documents: containers, units, licences, the threat model; read as they would be used."""

import re
import shutil
import subprocess
from pathlib import Path

import licences
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
SECRET = re.compile(
    r"(?i)(password|secret|token|key)\s*[:=]\s*[\"']?(?!/run/secrets|\.)[A-Za-z0-9+/]{8,}|sk-[\w-]{16,}"
)


def files():
    return sorted(path for path in DEPLOY.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_no_secrets(path):
    assert not SECRET.search(path.read_text())


# -- containers -------------------------------------------------------------------------------------------------------


def instructions():
    text = (DEPLOY / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", text)).splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


def test_the_image_pins_python_and_runs_without_rights():
    found = instructions()
    images = [value for name, value in found if name == "FROM"]
    assert all(re.match(r"python:3\.11\.\d+-slim-\w+", image) for image in images)
    users = [value for name, value in found if name == "USER"]
    last = users[-1].split(":")
    assert all(part.isdecimal() and int(part) > 0 for part in last)
    # Nothing is made by root after that.
    after = [name for name, _ in found[[name for name, _ in found].index("USER") :]]
    assert "RUN" not in after
    assert "COPY" not in after
    assert not [name for name, _ in found if name == "ADD"]


def test_the_image_copies_what_is_there_and_installs_what_there_is():
    for name, value in instructions():
        if name == "COPY" and not value.startswith("--from"):
            *sources, _ = value.split()
            assert all((ROOT / source).exists() for source in sources)
    extras = re.search(r"'\.\[([\w,]+)\]'", (DEPLOY / "Dockerfile").read_text())[1].split(",")
    assert set(extras) <= set(licences.EXTRAS)


@pytest.fixture
def compose():
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_containers_can_change_nothing_but_their_volumes(compose):
    assert set(compose["services"]) == {"serve", "worker", "database"}
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert not service.get("privileged")
        assert "network_mode" not in service
        assert service["mem_limit"]
        assert not [volume for volume in service["volumes"] if "docker.sock" in volume or volume.startswith("/")]
    for name in ("serve", "worker"):
        assert compose["services"][name]["user"] == "10001:10001"
        assert "cap_add" not in compose["services"][name]


def test_only_the_server_is_reached_and_only_from_this_machine(compose):
    ports = {name: service.get("ports", []) for name, service in compose["services"].items()}
    assert ports == {"serve": ["127.0.0.1:8000:8000"], "worker": [], "database": []}
    assert compose["networks"]["inside"]["internal"] is True
    assert compose["services"]["worker"]["networks"] == compose["services"]["database"]["networks"] == ["inside"]


def test_images_are_pinned_and_secrets_are_files(compose):
    for service in compose["services"].values():
        assert re.fullmatch(r"\w+:\d+\.\d+(\.\d+)?(-\w+)?", service["image"])
    used = {secret for service in compose["services"].values() for secret in service.get("secrets", [])}
    assert used == set(compose["secrets"])
    assert all(secret["file"].startswith("./secrets/") for secret in compose["secrets"].values())
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


# -- units ------------------------------------------------------------------------------------------------------------

HARD = {
    "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes",
    "ProtectKernelTunables": "yes", "ProtectKernelModules": "yes", "ProtectControlGroups": "yes",
    "RestrictNamespaces": "yes", "RestrictSUIDSGID": "yes", "LockPersonality": "yes", "CapabilityBoundingSet": "",
    "SystemCallArchitectures": "native", "SystemCallFilter": "@system-service", "UMask": "0077", "User": "titer",
    "StateDirectory": "titer", "StateDirectoryMode": "0700",
}  # fmt: skip


def settings(path):
    lines = [line for line in path.read_text().splitlines() if line and line[0] not in "#["]
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_may_do_little(path):
    found = settings(path)
    assert {name: found.get(name) for name in HARD} == HARD
    assert found["Restart"] in ("on-failure", "always")
    assert (
        int(found["TimeoutStopSec"]) >= 20
    )  # a worker has 10 s beside a server, and its own way to a checkpoint alone


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_the_units(tmp_path):
    copies = []
    for path in UNITS:
        copies.append(tmp_path / path.name)
        copies[-1].write_text(path.read_text().replace("/opt/titer/bin/titer", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *copies], capture_output=True, text=True)
    told = [line for line in done.stderr.splitlines() if any(path.name.partition("@")[0] in line for path in UNITS)]
    assert (done.returncode, told) == (0, [])


def commands():
    """Every command line of titer in the deployment: (file, words)."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    found = [("compose.yaml", service["command"]) for service in compose["services"].values() if "command" in service]
    found += [(path.name, settings(path)["ExecStart"].split()[1:]) for path in UNITS]
    (line,) = [value for name, value in instructions() if name == "CMD"]
    return [*found, ("Dockerfile", yaml.safe_load(line))]


@pytest.mark.parametrize(("where", "words"), commands())
def test_commands_are_titers(where, words):
    import typer

    from titer.cli import app

    verbs = typer.main.get_command(app)
    if words[0] == "worker" and "worker" not in verbs.commands:
        pytest.skip("`titer worker` is not there")
    command = verbs.commands[words[0]]
    command.make_context(words[0], [str(word) for word in words[1:]])


# -- licences and the threat model ------------------------------------------------------------------------------------


def test_what_the_service_needs_may_stand_beside_apache():
    for package in licences.needed():
        named = licences.licence(package)
        assert package in licences.KNOWN or any(word in named for word in licences.PERMISSIVE), (package, named)
    assert set(licences.KNOWN) <= set(licences.needed())


def test_the_page_lists_them():
    text = licences.PAGE.read_text(encoding="utf-8")
    assert text == licences.page(text), "run `python docs/licences.py`"


def test_the_tests_that_the_page_names_are_there():
    text = licences.PAGE.read_text(encoding="utf-8")
    sources = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) > 20
    assert [name for name in named if f"def {name}(" not in sources] == []
