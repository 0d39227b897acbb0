"""The loopback Hub answers the real client as the Hub does: errors by class, nothing half committed."""

import hashlib
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.helpers.hub import Hub
from tests.helpers.hub_store import OWNER_TOKEN, READER_TOKEN


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches the client online: the session is offline, but this Hub is on loopback."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def owner(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=OWNER_TOKEN)


@pytest.fixture
def anonymous(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=False)


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_repository_life(owner: HfApi) -> None:
    assert owner.whoami()["name"] == "owner"
    assert owner.create_repo("owner/life").repo_id == "owner/life"
    with pytest.raises(HfHubHTTPError) as error:
        owner.create_repo("owner/life")
    assert status_of(error) == 409
    assert owner.create_repo("owner/life", exist_ok=True).repo_id == "owner/life"
    first = owner.upload_file(path_or_fileobj=b"one", path_in_repo="folder/a.txt", repo_id="owner/life").oid
    owner.create_branch("owner/life", branch="draft")
    owner.create_tag("owner/life", tag="v1")
    with pytest.raises(HfHubHTTPError) as error:
        owner.create_branch("owner/life", branch="draft")
    assert status_of(error) == 409
    owner.upload_file(path_or_fileobj=b"two", path_in_repo="folder/a.txt", repo_id="owner/life", revision="draft")
    assert owner.model_info("owner/life").sha == owner.model_info("owner/life", revision="v1").sha == first
    assert owner.model_info("owner/life", revision="draft").sha != first
    assert {ref.name for ref in owner.list_repo_refs("owner/life").branches} == {"main", "draft"}
    paths = [item.path for item in owner.list_repo_tree("owner/life", recursive=True)]
    assert paths == ["folder", ".gitattributes", "folder/a.txt"]
    assert [item.path for item in owner.list_repo_tree("owner/life")] == ["folder", ".gitattributes"]
    assert owner.get_paths_info("owner/life", ["folder/a.txt", "absent"])[0].size == 3
    owner.delete_file("folder/a.txt", "owner/life")
    assert owner.list_repo_files("owner/life") == [".gitattributes"]
    owner.delete_branch("owner/life", branch="draft")
    owner.delete_tag("owner/life", tag="v1")
    owner.delete_repo("owner/life")
    assert not owner.repo_exists("owner/life")


def test_folder_upload_and_download(owner: HfApi, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "weights.safetensors").write_bytes(bytes(range(256)) * 300)
    (source / "sub" / "notes.txt").write_text("naïve", encoding="utf-8")
    (source / "empty.txt").touch()
    owner.create_repo("owner/folder")
    owner.upload_folder(repo_id="owner/folder", folder_path=source)
    shown = {item.path: item for item in owner.list_repo_tree("owner/folder", recursive=True)}
    assert shown["weights.safetensors"].lfs.sha256 == hashlib.sha256(bytes(range(256)) * 300).hexdigest()
    assert shown["sub/notes.txt"].lfs is None
    target = Path(owner.snapshot_download("owner/folder", cache_dir=tmp_path / "cache"))
    for path in source.rglob("*.*"):
        assert (target / path.relative_to(source)).read_bytes() == path.read_bytes()

    before = owner.list_repo_commits("owner/folder")
    owner.upload_folder(repo_id="owner/folder", folder_path=source)
    assert owner.list_repo_commits("owner/folder") == before, "a second identical push made a commit"


def test_ranges(hub: Hub, owner: HfApi) -> None:
    owner.create_repo("owner/ranges")
    owner.upload_file(path_or_fileobj=b"0123456789", path_in_repo="a.txt", repo_id="owner/ranges")
    url = f"{hub.url}/owner/ranges/resolve/main/a.txt"
    session = huggingface_hub.get_session()
    for wanted, content in (("bytes=2-4", b"234"), ("bytes=7-", b"789"), ("bytes=-3", b"789"), ("bytes=8-99", b"89")):
        answer = session.get(url, headers={"Range": wanted})
        assert (answer.status_code, answer.content) == (206, content)
    assert session.get(url, headers={"Range": "bytes=10-"}).status_code == 416
    assert session.get(url).content == b"0123456789"


def test_private_repository_and_tokens(hub: Hub, owner: HfApi, anonymous: HfApi, tmp_path: Path) -> None:
    reader = HfApi(endpoint=hub.url, token=READER_TOKEN)
    owner.create_repo("owner/secret", private=True)
    owner.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="owner/secret")
    assert owner.model_info("owner/secret").private
    assert Path(owner.hf_hub_download("owner/secret", "a.txt", cache_dir=tmp_path)).read_bytes() == b"x"
    for stranger, status in ((anonymous, 401), (reader, 404)):
        with pytest.raises(RepositoryNotFoundError) as error:
            stranger.model_info("owner/secret")
        assert status_of(error) == status
    owner.update_repo_settings("owner/secret", private=False)
    assert not reader.model_info("owner/secret").private
    with pytest.raises(HfHubHTTPError, match="403 Forbidden") as error:
        reader.upload_file(path_or_fileobj=b"y", path_in_repo="a.txt", repo_id="owner/secret")
    assert status_of(error) == 403
    with pytest.raises(HfHubHTTPError) as error:
        reader.create_repo("owner/other")
    assert status_of(error) == 403
    with pytest.raises(HfHubHTTPError) as error:
        HfApi(endpoint=hub.url, token="hf_unknown").model_info("owner/secret")
    assert status_of(error) == 401 and not isinstance(error.value, RepositoryNotFoundError)


def test_missing_things(owner: HfApi, tmp_path: Path) -> None:
    owner.create_repo("owner/missing")
    with pytest.raises(RepositoryNotFoundError):
        owner.model_info("owner/nothing")
    with pytest.raises(RevisionNotFoundError):
        owner.model_info("owner/missing", revision="nowhere")
    with pytest.raises(EntryNotFoundError):
        owner.hf_hub_download("owner/missing", "absent.txt", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        owner.upload_file(path_or_fileobj=b"x", path_in_repo="a", repo_id="owner/missing", revision="nowhere")


def test_commit_is_all_or_nothing(hub: Hub, owner: HfApi) -> None:
    owner.create_repo("owner/commits")
    head = owner.model_info("owner/commits").sha
    session, headers = huggingface_hub.get_session(), {"Authorization": f"Bearer {OWNER_TOKEN}"}
    lines = [
        '{"key": "header", "value": {"summary": "add", "description": ""}}',
        '{"key": "file", "value": {"path": "a.txt", "content": "eA==", "encoding": "base64"}}',
        f'{{"key": "lfsFile", "value": {{"path": "w.safetensors", "algo": "sha256", "oid": "{"0" * 64}", "size": 1}}}}',
    ]
    url = f"{hub.url}/api/models/owner/commits/commit/main"
    answer = session.post(url, content="\n".join(lines), headers=headers)
    assert answer.status_code == 400 and "never uploaded" in answer.json()["error"]
    assert owner.model_info("owner/commits").sha == head
    assert session.post(url, content="\n".join(lines[:2]), headers=headers).status_code == 200
    with pytest.raises(HfHubHTTPError) as error:
        owner.upload_file(path_or_fileobj=b"z", path_in_repo="a.txt", repo_id="owner/commits", parent_commit=head)
    assert status_of(error) == 412
    upload = session.put(f"{hub.url}/_lfs/{'0' * 64}?ticket=forged", content=b"anything")
    assert upload.status_code == 403


def test_injected_failures_are_seen_and_retried(hub: Hub, owner: HfApi) -> None:
    owner.create_repo("owner/shaky")
    hub.fail("/preupload/", status=503, times=1)
    owner.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="owner/shaky")
    statuses = [status for method, path, status in hub.log() if "owner/shaky/preupload" in path]
    assert statuses == [503, 200]


@pytest.mark.parametrize(
    ("front_matter", "complaint"),
    [
        ("license: apache-2.0\nlanguage:\n- en\n- fr\ntags:\n- translation", None),
        ("license: free-for-all", "license"),
        ("license: mit\nlanguage:\n- english please", "language"),
        ("license: mit\nlicense: mit", "duplicate key"),
        ("license: mit\nmodel-index:\n- name: m\n  results:\n  - task:\n      name: T", "task.type"),
        (
            "license: mit\nmodel-index:\n- name: m\n  results:\n  - task:\n      type: translation\n    dataset:\n"
            "      name: d\n      type: d\n    metrics:\n    - type: bleu\n      value: high",
            "must be a number",
        ),
    ],
)
def test_card_validation(hub: Hub, monkeypatch: pytest.MonkeyPatch, front_matter: str, complaint: str | None) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    # ModelCard fills in nothing that the text lacks; the raw text reaches the server through `content`.
    card = ModelCard("---\nlicense: mit\n---\n")
    monkeypatch.setattr(type(card), "__str__", lambda self: f"---\n{front_matter}\n---\n# A model\n")
    if complaint is None:
        card.validate()
    else:
        with pytest.raises(ValueError, match=complaint):
            card.validate()
