"""What went wrong once: data sets that differ, and a component that is no section."""

from luthier.migrate.findings import Kind
from migrate_parts import imported, small


def chats(path: str, **options: object) -> dict[str, object]:
    return {"path": path, "type": "chat_template", **options}


def test_data_sets_that_learn_different_roles_are_told_and_none_wins(tmp_path) -> None:
    differing = [chats("org/a", roles_to_train=["user"]), chats("org/b")]
    result = imported(tmp_path, small("axolotl") | {"datasets": differing})
    assert "learn" not in result.values["data"]
    told = [f.text for f in result.findings if f.key == "datasets" and f.kind is Kind.NONE]
    assert len(told) == 1 and "org/a" in told[0] and "org/b" in told[0]

    alike = [chats("org/a", roles_to_train=["user"]), chats("org/b", roles_to_train=["user"])]
    result = imported(tmp_path, small("axolotl") | {"datasets": alike})
    assert result.values["data"]["learn"] == ["user"]


def test_a_schedule_that_is_no_section_is_told(tmp_path) -> None:
    result = imported(tmp_path, small("torchtune") | {"lr_scheduler": False})
    (found,) = [finding for finding in result.findings if finding.key == "lr_scheduler"]
    assert found.kind is Kind.UNKNOWN and "must be a section" in found.text
