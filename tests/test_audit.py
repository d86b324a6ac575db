"""The audit of licences notices what is neither permissive nor listed."""

import pytest

from tests import audit


def install(folder, name, *lines):
    """Metadata as an installer writes them, of no package at all."""
    place = folder / f"{name}-1.0.dist-info"
    place.mkdir(parents=True)
    text = "\n".join(
        ["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *lines]
    )
    (place / "METADATA").write_text(text + "\n")


GPL = "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"
MIT = "License :: OSI Approved :: MIT License"


@pytest.mark.parametrize(
    ("lines", "stated"),
    [
        (["License-Expression: GPL-3.0-only"], "GPL-3.0-only"),
        (["License-Expression: MIT AND GPL-3.0-only"], "MIT AND GPL-3.0-only"),
        (["License-Expression: MIT OR AGPL-3.0-only"], "MIT OR AGPL-3.0-only"),
        ([f"Classifier: {GPL}"], "GNU General Public License v3 (GPLv3)"),
        (
            [f"Classifier: {MIT}", f"Classifier: {GPL}"],
            "MIT License AND GNU General Public License v3 (GPLv3)",
        ),
        (["License: proprietary"], "proprietary"),
        (["Classifier: License :: OSI Approved"], "none stated"),
        ([], "none stated"),
    ],
)
def test_an_unlisted_licence_is_an_error(lines, stated, tmp_path):
    install(tmp_path, "good", "License-Expression: MIT")
    install(tmp_path, "Made_Up", *lines)
    problem = audit.main([str(tmp_path)])
    assert problem.splitlines()[1:] == [f"made-up 1.0: {stated}"]


def test_what_packages_carry_is_read_too(tmp_path):
    install(tmp_path / "carrier/_vendor", "carried", "License: GPL")
    problem = audit.main([str(tmp_path)])
    assert problem.splitlines()[1:] == ["carrier: carried 1.0: GPL"]


def test_permissive_and_listed_ones_pass(tmp_path, capsys):
    install(tmp_path, "a", "License-Expression: (MIT OR Apache-2.0) AND Zlib")
    install(tmp_path, "b", f"Classifier: {MIT}", "License: see LICENSE")
    install(tmp_path, "c", "License: Apache 2.0")
    install(tmp_path, "tqdm", "License: MPL-2.0 AND MIT")
    assert audit.main([str(tmp_path)]) is None
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[0] for line in lines] == [
        *("a", "b", "c", "tqdm", "4"),
    ]
    assert "tqdm 1.0: MPL-2.0 AND MIT (progress bars" in lines[3]


def test_an_exception_holds_for_its_licence_only(tmp_path):
    install(tmp_path, "tqdm", "License-Expression: GPL-3.0-only")
    install(tmp_path, "nvidia-any", "License: NVIDIA Proprietary Software")
    install(tmp_path, "other", "License: NVIDIA Proprietary Software")
    problem = audit.main([str(tmp_path)])
    assert problem.splitlines()[1:] == [
        "other 1.0: LicenseRef-NVIDIA-Proprietary",
        "tqdm 1.0: GPL-3.0-only",
    ]


def test_a_wrong_folder_is_an_error(tmp_path):
    assert "No packages" in audit.main([str(tmp_path / "nothing")])
