"""The licences of all that is installed: `python -m tests.audit` lists them.

One that licenses.toml has neither as permissive nor as an exception, with its
reason, is an error. Read are the SPDX expression, else the classifiers, else
the field License of the metadata, also of packages that others carry in a
folder `_vendor`. Every part of an expression must be accepted, those of an OR
too. pip-licenses-cli 4.1 hides what is excepted, so that another licence would
go unseen, and does not take an AND apart.

Binary wheels carry libraries that metadata does not name: docs/privacy.md.
"""

import argparse
import fnmatch
import importlib.metadata
import pathlib
import re
import sys
import tomllib

ACCEPTED = pathlib.Path(__file__).with_name("licenses.toml")


def main(arguments=None):
    """List the licences; returns what is wrong, for `sys.exit`.

    Args:
        arguments: Those of the command line. Defaults to `None`, its own.

    Returns:
        An error of a line for each package, or `None`.
    """
    parser = argparse.ArgumentParser(description=main.__doc__.partition(";")[0])
    parser.add_argument("--quiet", action="store_true", help="only problems")
    parser.add_argument("folders", nargs="*", default=sys.path)
    arguments = parser.parse_args(arguments)
    accepted = tomllib.loads(ACCEPTED.read_text())
    exceptions = accepted["exceptions"]
    found = dict(sorted(_installed(arguments.folders)))
    problems = []
    for name, (version, stated) in found.items():
        stated = accepted["spellings"].get(stated, stated)
        exception = _exception(name, exceptions)
        listed = exception.get("license") == stated
        if not listed and not _is_permissive(stated, accepted):
            problems.append(f"{name} {version}: {stated}")
        if not arguments.quiet:
            reason = f" ({exception['reason']})" if listed else ""
            print(f"{name} {version}: {stated}{reason}")
    if problems:
        return "\n".join(
            [f"Neither permissive nor listed in {ACCEPTED.name}:", *problems]
        )
    if not found:
        return f"No packages in {', '.join(arguments.folders)}."
    print(f"{len(found)} packages, all permissive or listed.")
    return None


def _installed(folders):
    """Name, and version and licence, of each package; carried ones too."""
    for folder in map(pathlib.Path, folders):
        carriers = {"": folder}
        for place in folder.glob("*/_vendor"):
            carriers[f"{place.parent.name}: "] = place
        for prefix, place in carriers.items():
            for package in importlib.metadata.distributions(path=[str(place)]):
                name = re.sub(r"[-_.]+", "-", package.name).lower()
                stated = _license(package.metadata)
                yield prefix + name, (package.version, stated)


def _license(metadata):
    """What a package states, in one line."""
    if expression := metadata["License-Expression"]:
        return expression
    classifiers = metadata.get_all("Classifier") or ()
    names = [
        text.rpartition(" :: ")[2]
        for text in classifiers
        if text.startswith("License :: ") and text != "License :: OSI Approved"
    ]
    if names:
        return " AND ".join(names)
    text = (metadata["License"] or "").strip()
    # Some have the whole text there.
    return text.splitlines()[0].strip() if text else "none stated"


def _exception(name, exceptions):
    """What is listed for a package, or for a pattern that its name has."""
    patterns = (key for key in exceptions if fnmatch.fnmatchcase(name, key))
    return exceptions.get(next(patterns, None), {})


def _is_permissive(stated, accepted):
    parts = re.split(r" (?:AND|OR) ", re.sub(r"[()]", "", stated))
    names = [accepted["spellings"].get(part, part) for part in parts]
    return set(names) <= set(accepted["permissive"])


if __name__ == "__main__":
    sys.exit(main())
