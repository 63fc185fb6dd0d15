"""Every page: its links lead somewhere, what it names exists, what it quotes is printed, and its figures are right."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from markdown_it import MarkdownIt
from markdown_it.token import Token

import bramble
from tests.support import ROOT, commands, playbooks, variables
from tests.support.commands import is_placeholder
from tests.support.files import project_files, source_texts


def listed(text: str, separator: str = " ") -> set[str]:
    """Return the parts of a text, in as many lines as it needs."""
    return {part.strip() for part in " ".join(text.split()).split(separator)}


# Names of other projects: SQLite's, and those of OctaPi's scripts.
OCTAPI = listed(
    """brute_force_factor bruteforce_octapi cluster_action compute compute_pi_canonical compute_pi_efficient compute_pi_standalone
    dartboard_octapi enigma_bf_efficient jobs_cond no_of_jobs not_very_random pi_dartboard pkc_caesar semi_prime_standalone"""
)
FOREIGN = {
    "CONTRIBUTING.md": {"CODE", "FIGURES"},  # lists of these tests
    "docs/lab/shop.md": {"sqlite_master"},
    "docs/octapi.md": {*OCTAPI, *(f"{name}.py" for name in OCTAPI), "shelve", "ssl.wrap_socket"},
}
# Names of Windows, Linux, Kubernetes, snapd, Parrot, .NET and Ansible; and names that Bramble makes of two parts.
FOREIGN_NAMES = listed(
    """timedatectl inactive ErrImageNeverPull OOMKilled strap.sh core22 lsblk usb-storage usbipd usbipd-win library-packs
    UNREACHABLE pi-03-0 pi-03-3 bramble-lab-shop bramble-lab-visit bramble-state secrets-defended.json"""
)
# Paths of others and of users, and paths that Bramble makes of parts.
FOREIGN_PATHS = listed(
    """extensions/molecule .venv/bin/activate v/bin/pip v/bin/bramble cards/pi-01.img cards/pi-02.img /etc/wsl.conf
    /opt/bramble-dispy/bin/python3 reports/microk8s/verify.json .state/<cluster_name>/lab/secrets.json /var/lib/bramble-lab/before
    /etc/bramble/tls/ca.pem /etc/bramble/tls/node.pem /etc/bramble/tls/node.key"""
)
# Programs of others: what follows them is not checked.
PROGRAMS = listed(
    """ansible-doc apt-get base64 chronyc docker echo export git grep ip journalctl john kubectl lab liquid locale ls lynis
    microk8s modprobe openssl pip pip3 python python3 quantum rm snap source ssh sshd sudo systemctl systemd-analyze
    tar tshark umount usbipd winget wsl"""
)
# What pages quote from others: Linux, OctaPi, Kubernetes, SQL, HTTP, OpenSSH, chrony and dispy.
FOREIGN_QUOTES = listed(
    """Host key verification failed|Network is unreachable|cluster_action.sh shutdown|$(hostname -I)]|while i <= no_of_jobs
    |with jobs_cond:|random.randint(0, 65535)|describe pod|get pods|' UNION SELECT 1, 2 --|Authorization: Basic|MaxSessions 2
    |[boot] systemd=true|JobCluster(..., secret=...)|cgroup_enable=memory cgroup_memory=1|PRAGMA query_only|import dispy
    |local stratum 10|MaxAuthTries 20|… failed at byte …: Input/output error
    |II V III, rings 1 1 1, start SCC: THISXISXWORKING""",
    "|",
)
# What changed once need not exist today; a template's page is one after it was copied; the listing of messages has its own test.
HISTORY = {"CHANGELOG.md", "docs/messages.md", "workloads/tests/template/README.md"}


FILES = project_files()
PAGES = [path for path in FILES if path.endswith(".md") and path not in HISTORY]


def tokens(text: str) -> Iterator[Token]:
    for token in MarkdownIt().enable("table").parse(text):
        yield token
        yield from token.children or []


def slug(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    return {slug(match) for match in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def broken_links(path: str, text: str) -> list[str]:
    found = []
    for token in tokens(text):
        target = str(token.attrs.get("href") or token.attrs.get("src") or "")
        targets = (
            [target] if target else re.findall(r'(?:href|src)="([^"]*)"', token.content) if token.type.startswith("html") else []
        )
        # A reference without its definition stays text.
        found += re.findall(r"\[[^\]]+\]\[[^\]]*\]", token.content) if token.type == "text" else []
        found += [target for target in targets if not leads_somewhere(path, target)]
    return found


def leads_somewhere(path: str, target: str) -> bool:
    """Return whether the file and the heading of a link exist; those of other sites are not asked."""
    if re.match(r"https?:|mailto:", target):
        return True
    name, _, anchor = target.partition("#")
    file = (ROOT / path).parent / name if name else ROOT / path
    return file.exists() and (not anchor or anchor in anchors(file.read_text(encoding="utf-8")))


def code(text: str) -> Iterator[str]:
    """Yield the commands and names of a page: each inline code, and each line of a block without prompt and comment.

    Blocks of the language `text` have sentences.
    """
    for token in tokens(text):
        if token.type == "code_inline":
            yield token.content
        elif token.type in {"code_block", "fence"} and token.info != "text":
            for line in token.content.replace("\\\n", " ").splitlines():
                yield re.sub(r"\s+# .*", "", line.removeprefix("$ ").strip())


# --- What a source has


@cache
def source() -> str:
    """Return the text of all sources: no pages, pictures or tests. Strings that go on in the next line are joined."""
    texts = [text for _, text in source_texts()]
    return re.sub(r"\s+", " ", re.sub(r"""(["'])\s*\n\s*f?\1""", "", "\n".join(texts)))


@cache
def names() -> frozenset[str]:
    """Return every word of a source, whole (`a.b-c`) and in parts, and the parts of the paths of all files."""
    words = re.findall(r"[A-Za-z0-9_][\w.-]*", source())
    parts = {part for path in FILES for part in [*path.split("/"), *re.split(r"\W+", path)]}
    return frozenset(
        {*words, *(word.rstrip(".") for word in words), *(part for word in words for part in re.split(r"\W", word)), *parts}
    )


def expanded(path: str) -> list[str]:
    """Return the paths that a path with one {a,b} stands for."""
    parts = [part.split(",") for part in re.split(r"[{}]", path)]
    return ["".join(chosen) for chosen in product(*parts)]


def is_pattern(path: str) -> bool:
    """Return whether a path, or a part of one, stands for several: `NAME/tests`, `<id>`, `*.deb`."""
    return bool(re.search(r"[…<>*]|(?<![.\w-])(?!README|CHANGELOG|CONTRIBUTING|LICENSE)[A-Z]{3,}|[-_]NAME", path))


def exists(path: str, page: str) -> bool:
    """Return whether a path is of the repository or of a role, is in a source, or of a folder and a name in one."""
    if (
        (ROOT / path).exists()
        or (ROOT / page).parent.joinpath(path).exists()
        or any(f"/{path.rstrip('/')}" in file for file in FILES)
    ):
        return True
    parts = [part for part in path.strip("/").split("/") if not is_pattern(part)]
    if path.startswith(("/", "~")):
        folder, name = path.rstrip("/").rsplit("/", maxsplit=1)
        is_whole = path.rstrip("/") in source() or re.sub(r"/[^/]*[<*].*", "", path) in source()
        return is_whole or any(folder in text and re.search(rf"[/\"']{re.escape(name)}\b", text) for _, text in source_texts())
    if path.startswith((".state/", ".cache/", "reports/")):
        # The second part is the name of a cluster or of a program.
        return all(
            re.search(rf"[/\"']{re.escape(part)}(?![\w.])", source()) for part in parts[1:] if part not in {"octapi", "rehearsal"}
        )
    return path in source() or (is_pattern(path) and all(part in names() for part in parts))


# URLs, addresses with a prefix, names in Kubernetes, devices of the kernel, and paths of other systems and of web pages.
NOT_A_PATH = re.compile(
    r"\w+://\S+|[\d.]+/[\w.]+|deployment/\S+|/(?:dev|mnt|media|home|usr/s?bin|s|price|metrics|info|health)\b\S*|\w+/output\b"
)


def missing_files(page: str, text: str) -> list[str]:
    """Return the paths that a page names in code and that nobody makes."""
    found = []
    for command in code(text):
        rest = re.sub(NOT_A_PATH, "", command)
        for word in re.findall(r"(?<![\w./~$-])[~.]?/?\.?[\w{][\w.*<>{},…-]*(?:/[\w.*<>{},…-]+)+/?", rest):
            found += [path for path in expanded(word) if path not in FOREIGN_PATHS and not exists(path, page)]
    return found


def unknown_names(page: str, text: str) -> list[str]:
    """Return the names in code that no source has: single words, words with an underscore, units and hosts."""
    found = set()
    for part in code(text):
        found.update(re.findall(r"\b[a-z]+(?:_[a-z0-9]+)+\b|\bbramble-[a-z]+(?:-[a-z]+)*(?![.\w*-])", part))
        found.update(
            word
            for word in [part.strip("./")]
            if re.fullmatch(r"[A-Za-z_][\w.-]*[A-Za-z0-9]", word) and not is_placeholder(word[1:])
        )
        found.update(re.findall(r"^[A-Z]{3,}$", part))  # a verdict of one word
        found.update(host for host in re.findall(r"\bpi-\d+\b(?!-)", part) if host not in commands.hosts())
    return sorted(found - names() - FOREIGN.get(page, set()) - FOREIGN_NAMES)


# --- Things by their kind: "the role `worker`"


@cache
def kinds() -> dict[str, frozenset[str]]:
    """Return the names of each kind of thing that pages name together with its kind."""
    inventory = set(commands.hosts())
    images = set(yaml.safe_load((ROOT / "images/catalog.yml").read_text(encoding="utf-8"))["images"])
    packages = {
        path: (ROOT / path).read_text(encoding="utf-8") for path in FILES if path.startswith(("scripts/", "images/", "roles/"))
    }
    return {
        "role": frozenset(playbooks.roles()),
        "group": frozenset({*inventory, *playbooks.group_vars()["cluster_groups"], "bramble", "sudo", "adm"}),
        "host": frozenset(inventory),
        "image": frozenset(images),
        "user": frozenset({"bramble", "bramble-dispy", "pi", "intern", "root", "clerk"}),
        "scenario": frozenset(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml")),
        "package": frozenset(re.findall(r"[a-z][a-z0-9+.-]+", " ".join(packages.values()))),
        "unit": frozenset(re.findall(r"[\w.-]+", source())),
    }


def wrong_kinds(text: str) -> list[str]:
    """Return the names that are not of the kind that the word before or after them says."""
    kind = "|".join(kinds())
    found = re.findall(rf"\b({kind})s? `([\w-]+)`", text) + [
        (of, name) for name, of in re.findall(rf"(?<=the )`([\w-]+)` ({kind})\b", text)
    ]
    return [f"no {of} {name}" for of, name in found if name not in kinds()[of] and not is_placeholder(name)]


# --- Quotations


def is_of_others(line: str) -> bool:
    """Return whether a command or a quotation is none of Bramble's, or no text at all."""
    first = line.split(" ", maxsplit=1)[0]
    return (
        first.rpartition("/")[2] in PROGRAMS or line in FOREIGN_QUOTES or line.startswith(("-", "/", "$", "…/")) or "=" in first
    )


def wrong_quotes(text: str) -> list[str]:
    """Return the inline code with a blank that is no command and that nothing prints, and verdicts in capitals that none has."""
    printed = source() + " " + (ROOT / "docs/messages.md").read_text(encoding="utf-8")
    quoted = {" ".join(token.content.split()) for token in tokens(text) if token.type == "code_inline"}
    found = []
    for line in code(text):
        words = line.split()
        if not words or is_of_others(line) or commands.whole_command(words):
            continue
        verdicts = re.findall(r"(?<![\w.-])[A-Z]{2,}(?: [A-Z]+)+(?![\w.-])", re.sub(r" [A-Z]\b(?! [A-Z]{2})", "", line))
        found += [f"no verdict {verdict}" for verdict in verdicts if not re.search(rf"{verdict}\b", printed)]
        is_setting = words[0].endswith(":") and words[0].strip(":") in names() | commands.hosts()
        pieces = re.split(r"…|\b[A-Z]\b|\d+|<\w+>|pi-\d+|\w+://\S+|[A-Z]{2,}(?: [A-Z]+)*", line)
        if (
            len(words) > 1
            and " ".join(words) in quoted
            and not is_setting
            and not all(piece.strip() in printed for piece in pieces)
        ):
            found.append(f"nothing prints `{line}`")
    return found


def problems(page: str, text: str) -> list[str]:
    """Return everything that is wrong in a page."""
    found = [*broken_links(page, text), *commands.command_problems(code(text)), *missing_files(page, text)]
    found += [*unknown_names(page, text), *wrong_kinds(text), *wrong_quotes(text)]
    return found


@pytest.mark.parametrize("path", PAGES)
def test_page(path: str) -> None:
    assert problems(path, (ROOT / path).read_text(encoding="utf-8")) == []


PLAY = "ansible-playbook playbooks/site.yml"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](nowhere.md)", "nowhere.md"),
        ("[a](README.md#nothing-of-that-name)", "README.md#nothing-of-that-name"),
        ("![a](docs/nothing.png)", "docs/nothing.png"),
        ('<a href="nowhere.md">a</a>', "nowhere.md"),
        ('<img src="docs/nothing.png">', "docs/nothing.png"),
        ("see [a][nothing]", "[a][nothing]"),
        ("`ansible-playbook playbooks/nothing.yml`", "no playbook playbooks/nothing.yml"),
        ("`… playbooks/nothing.yml --check`", "playbooks/nothing.yml"),
        (f"    {PLAY} --tags nothing", "no tag nothing"),
        (f"    {PLAY} --tags=nothing", "no tag nothing"),
        (f"    {PLAY} -t wroker", "no tag wroker"),
        (f"    {PLAY} --tags lab_target", "no tag lab_target"),
        ("`--tags nothing`", "no tag nothing"),
        (f"    {PLAY} --limit pi-77", "no host pi-77"),
        (f"    {PLAY} --limit=pi-77", "no host pi-77"),
        (f"    {PLAY} -l pi-33", "no host pi-33"),
        (f"    {PLAY} --chek", "--chek"),
        (f"    make up && {PLAY} --tags nothing", "no tag nothing"),
        (f"    $ {PLAY} -e 'nothing_here=1'", "no variable nothing_here"),
        (f"    {PLAY} -e isolated_lab_confirm=a", "no variable isolated_lab_confirm"),
        (f"    {PLAY} -e worker=1", "no variable worker"),
        (f"    {PLAY} -e '" + '{"nothing_here": 1}' + "'", "no variable nothing_here"),
        (f"    {PLAY} -e cluster_state=gone", "cluster_state has no value gone"),
        (f"    {PLAY} -e cluster_image=ubuntu-24.10-server", "cluster_image has no value ubuntu-24.10-server"),
        ("    ansible-playbook playbooks/run.yml -e workload=computer", "workload has no value computer"),
        ("    ansible-playbook playbooks/swap.yml -e node=pi-99", "no host pi-99"),
        ('    play="ansible-playbook -i inventory/hosts.yml --tags nothing"', "no tag nothing"),
        ('    play="ansible-playbook -i inventory/host.yml"', "no inventory inventory/host.yml"),
        ('    play="ansible-playbook"\n    $play playbooks/site.yml --tags nothing', "no tag nothing"),
        ("`-e nothing_here=1`", "no variable nothing_here"),
        ("`sites.yml`", "sites.yml"),
        ("`cards.yml --limit pi-clint`", "no host pi-clint"),
        ("`site.yml -e clusterstate=absent`", "no variable clusterstate"),
        ("`--methode`", "no option --methode"),
        ("`--method miller-robin`", "--method has no value miller-robin"),
        ("`bramble primality --method miller-robin`", "--method has no value miller-robin"),
        ("`bramble pi --on clusters`", "--on has no value clusters"),
        ("`bramble quantum grovr`", "quantum has no grovr"),
        ("`bramble pi -z 3`", "pi has no option -z"),
        ("`scripts/bootstrap --tests`", "scripts/bootstrap has no --tests"),
        ("`scripts/engine begin`", "scripts/engine has no begin"),
        ("`sudo scripts/outside.py stop`", "scripts/outside.py has no stop"),
        ("`make demo NODE=8`", "no variable NODE"),
        ("`make nothing`", "no target nothing"),
        ("    cd bramble && make nothing", "no target nothing"),
        ("`molecule test -s nothing`", "-s has no value nothing"),
        ("`molecule tests -s default`", "no command tests"),
        ("`bramble nothing`", "no command nothing"),
        ("`bramble pi --nothing 3`", "pi has no option --nothing"),
        ("`scripts/nothing`", "scripts/nothing"),
        ("`nothing_of_this_name`", "nothing_of_this_name"),
        ("the group `spares`", "no group spares"),
        ("the role `workload`", "no role workload"),
        ("the `workload` role", "no role workload"),
        ("`systemctl restart bramble-wroker`", "bramble-wroker"),
        ("the user `brambles`", "no user brambles"),
        ("`pi-99`", "pi-99"),
        ("`ssh -F .state/octapi/ssh/ssh_config pi-99`", "pi-99"),
        ("`raspios-trixy-lite`", "raspios-trixy-lite"),
        ("the package `mtool`", "no package mtool"),
        ("`/etc/bramble/ssl/`", "/etc/bramble/ssl/"),
        ("`.state/<cluster_name>/card.json`", ".state/<cluster_name>/card.json"),
        ("`/var/lib/bramble/network/result.json`", "/var/lib/bramble/network/result.json"),
        ("`invntory/hosts.yml`", "invntory/hosts.yml"),
        ("`bramble.engine.wroker`", "bramble.engine.wroker"),
        ("`docs/event/README.md`", "docs/event/README.md"),
        ("`DRAINEDD`", "DRAINEDD"),
        ("`TOO TINY`", "no verdict TOO TINY"),
        ("`NOT A CARDS`", "no verdict"),
        ("    pi-01  cards/pi-01.img  TOO TINY by 1 bytes", "no verdict TOO TINY"),
        ("`The Docker engine … does not respond`", "nothing prints `The Docker engine … does not respond`"),
        ("`Every card is good`", "nothing prints `Every card is good`"),
    ],
)
def test_a_page_that_is_wrong_is_found(text: str, problem: str) -> None:
    found = problems("README.md", text)
    assert any(problem in line for line in found), found


def test_the_page_of_variables_is_up_to_date() -> None:
    assert variables.PAGE.read_text(encoding="utf-8") == variables.page(), "Run scripts/reference, and read what changed."


def test_every_variable_has_a_description() -> None:
    rows = [line.split(" | ") for line in variables.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    assert [row[0] for row in rows if len(row[2].strip(" |")) < 10] == []


def test_the_page_of_variables_has_markdown_in_place_of_the_markup_of_ansible() -> None:
    # https://docs.ansible.com/ansible/latest/dev_guide/ansible_markup.html
    assert re.findall(r"\b[A-Z]\(.*", variables.page()) == []
    assert "so the default is `127.0.0.1`, which only the client reaches; the client's `node_address` opens" in variables.page()


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the rows of a page's table whose first row has these words, as cells."""
    lines = (ROOT / page).read_text(encoding="utf-8").partition(heading)[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]


def test_readme_names_every_role_and_playbook() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = dict(row[:2] for row in rows("README.md", "| folder | what is in it |"))
    assert set(re.findall(r"\]\(roles/(\w+)\)", table["`roles/`"])) == playbooks.roles()
    listed = {
        *re.findall(r"`(\w+)`", table["`playbooks/`"]),
        *re.findall(r"playbooks/(\w+)\.yml", text.partition("## Rebuild")[2]),
    }
    assert {path.stem for path in (ROOT / "playbooks").glob("*.yml")} - listed == set()


def test_architecture_names_every_package() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    layers = text.partition("| layer |")[2].partition("## Playbooks")[0]
    packages = {path.parent.name for path in ROOT.glob("plugins/module_utils/*/*.py")}
    assert {name for name in packages if not re.search(rf"`(?:module_utils/)?{name}`", layers)} == set()


def test_architecture_names_the_roles_that_remove_nothing() -> None:
    [listed] = re.findall(r"The roles ([\w, ]+) install nothing", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"))
    without = {
        path.parent.parent.name for path in ROOT.glob("roles/*/tasks/main.yml") if not path.with_name("absent.yml").exists()
    }
    assert set(re.split(", | and ", listed)) == without - {"service"}


def test_the_version_is_the_same_everywhere() -> None:
    versions = {
        yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"],
        tomllib.loads((ROOT / "workloads/pyproject.toml").read_text())["project"]["version"],
        bramble.__version__,
    }
    assert len(versions) == 1 and versions.pop() in (ROOT / "CHANGELOG.md").read_text()


def test_contributing_names_every_scenario() -> None:
    listed = {row[0].strip("`") for row in rows("CONTRIBUTING.md", "| scenario | what it shows | minutes |")}
    assert listed - {"---|---|---"} == {path.parent.name for path in ROOT.glob("molecule/*/molecule.yml")}


# --- Figures


def default(variable: str) -> int:
    """Return the number that a variable has, in the defaults of its role or in the variables of the cluster."""
    for file in [*ROOT.glob("roles/*/defaults/main.yml"), *ROOT.glob("inventory/group_vars/all/*.yml")]:
        values = DataLoader().load(file.read_text(encoding="utf-8"))
        if variable in values:
            return int(re.findall(r"\d+", str(values[variable]))[-1])
    raise LookupError(f"No file has the variable {variable}.")


def constant(path: str, pattern: str) -> int:
    """Return the number in a source that a pattern finds."""
    [found] = set(re.findall(pattern, (ROOT / path).read_text(encoding="utf-8")))
    return int(found)


def largest_card_gb() -> int:
    """Return the largest card in GB: the default of card_max_bytes, or the constant that it replaces."""
    try:
        return default("card_max_bytes") // 10**9
    except LookupError:
        return constant("plugins/module_utils/card/guard.py", r"LARGEST_CARD = (\d+) \* 10\*\*9")


def servers() -> int:
    """Return the number of servers of the inventory."""
    inventory = yaml.safe_load((ROOT / "inventory/hosts.yml").read_text(encoding="utf-8"))
    return len(inventory["cluster"]["children"]["servers"]["hosts"])


def lines(path: str) -> int:
    """Return the number of lines of a file."""
    return len((ROOT / path).read_text(encoding="utf-8").splitlines())


NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
LEAST_PYTHON = ("workloads/pyproject.toml", r'requires-python = ">=3\.(\d+)')

# Page, what it says (one group is the number, also as a word), and the number in the code.
FIGURES: list[tuple[str, str, Callable[[], int]]] = [
    ("README.md", r"valid for (\d+) days", lambda: default("certificate_days")),
    ("README.md", r"in its last (\d+) days", lambda: default("certificate_renew_days")),
    ("roles/certificate/README.md", r"`certificate_days`, (\d+) days", lambda: default("certificate_days")),
    ("README.md", r"rolled back after (\d+) seconds", lambda: default("network_confirm_timeout")),
    ("docs/events/network_lockout.md", r"after (\d+) seconds", lambda: default("network_confirm_timeout")),
    ("README.md", r"/24 holds (\d+) nodes", lambda: 255 - default("cluster_first_host")),
    ("README.md", r"nodes from \.(\d+) on", lambda: default("cluster_first_host")),
    ("README.md", r"at 192\.168\.1\.(\d+) to", lambda: default("cluster_first_host")),
    ("README.md", r"at 192\.168\.1\.\d+ to \.(\d+)", lambda: default("cluster_first_host") + servers()),
    ("README.md", r"One client and (\w+) servers", servers),
    ("README.md", r"With (\w+) slots", servers),
    ("README.md", r"tried with (\d+) servers", servers),
    ("README.md", r"(\w+) Pis \(one is the client", lambda: servers() + 1),
    ("README.md", r"(\w+) microSD cards of 8 GB", lambda: servers() + 1),
    ("README.md", r"a switch with (\w+) ports", lambda: servers() + 2),
    ("README.md", r"and (\w+) network cables", lambda: servers() + 2),
    ("README.md", r"Cards of up to (\d+) GB", largest_card_gb),
    ("docs/events/card_refused.md", r"of at most (\d+) GB", largest_card_gb),
    ("docs/events/card_refused.md", r"a disk of more than (\d+) GB", largest_card_gb),
    ("README.md", r"Ubuntu 24\.04, with Python 3\.(\d+) or newer", lambda: constant(*LEAST_PYTHON)),
    ("README.md", r"on any computer with Python 3\.(\d+) or newer", lambda: constant(*LEAST_PYTHON)),
    (
        "docs/events/card_too_small.md",
        r"`capture_card_bytes` \((\d+) % of 32 GB",
        lambda: default("capture_card_bytes") * 100 // (32 * 10**9),
    ),
    (
        "roles/capture/README.md",
        r"`capture_card_bytes` \((\d+) % of 32 GB",
        lambda: default("capture_card_bytes") * 100 // (32 * 10**9),
    ),
    ("roles/scheduler/README.md", r"`cluster_scheduler` \(port (\d+)\)", lambda: default("cluster_scheduler")),
    ("docs/kubernetes_workloads.md", r"Service `bramble-scheduler` \((\d+)\)", lambda: default("cluster_scheduler")),
    ("docs/kubernetes_workloads.md", r"\((\d+) processors", lambda: default("kubernetes_workloads_worker_cpu")),
    ("docs/kubernetes_workloads.md", r"processors, (\d+) GiB", lambda: default("kubernetes_workloads_worker_memory")),
    ("roles/scheduler/README.md", r"127\.0\.0\.1:(\d+)", lambda: default("scheduler_http_port")),
    ("docs/lab/ssh.md", r"192\.168\.1\.101, port (\d+)", lambda: default("lab_target_ssh_port")),
    ("docs/lab/ssh.md", r"-p (\d+)", lambda: default("lab_target_ssh_port")),
    ("roles/lab_target/README.md", r"`bramble-lab-ssh` \| (\d+)", lambda: default("lab_target_ssh_port")),
    ("roles/lab_target/README.md", r"`bramble-lab-shop` \| (\d+)", lambda: default("lab_target_shop_port")),
    ("roles/lab_target/README.md", r"`bramble-lab-desk` \| (\d+)", lambda: default("lab_target_desk_port")),
    ("docs/lab/ssh.md", r"The list has (\d+) words", lambda: lines("roles/lab_tools/files/words.txt")),
]


def wrong_figures(page: str, pattern: str, text: str, value: int) -> list[str]:
    """Return the numbers of a page that are not the value; a page without the sentence has one, too."""
    found = re.findall(pattern, " ".join(text.split()))
    return [number for number in found or ["no such sentence"] if number not in {str(value), *NUMBERS.split()[value : value + 1]}]


@pytest.mark.parametrize(("page", "pattern", "value"), FIGURES)
def test_figures_are_those_of_the_code(page: str, pattern: str, value: Callable[[], int]) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert wrong_figures(page, pattern, text, value()) == []
    assert wrong_figures(page, pattern, text, value() + 1) != []
    assert wrong_figures(page, pattern, "", value()) != []
