"""`push_to_hub`: one commit with everything, or nothing."""

import os
import pathlib
import re
import tempfile
import warnings
from typing import TYPE_CHECKING

from keras_resnext import __version__
from keras_resnext.classifier import Classifier
from keras_resnext.extras import first_line
from keras_resnext.extras import require
from keras_resnext.files import check_free
from keras_resnext.files import staged
from keras_resnext.quiet import quiet
from keras_resnext.share import repository as contents
from keras_resnext.share.card import check_evaluation
from keras_resnext.share.card import write_card
from keras_resnext.weights.hub import connection_problem
from keras_resnext.weights.hub import hub_endpoint
from keras_resnext.weights.hub import parse_repository

if TYPE_CHECKING:
    from keras_resnext.training import Evaluation

_LICENSE = r"[a-z0-9][a-z0-9.+-]*"
# What a new repository has.
_EMPTY = {".gitattributes"}


def push_to_hub(
    classifier: Classifier,
    repository: str,
    *,
    evaluation: "Evaluation | None" = None,
    license: str | None = None,
    description: str = "",
    exports: str | os.PathLike[str] | None = None,
    private: bool | None = None,
    overwrite: bool = False,
    token: str | None = None,
    dry_run: str | os.PathLike[str] | None = None,
) -> str:
    """Publish a classifier on the Hugging Face Hub, in one commit.

    The repository opens here (`Classifier.load("hf://user/name")`, or
    `weights="hf://user/name"` of a builder), in plain Keras
    (`keras.saving.load_model("hf://user/name")`) and, if the network is one
    that timm has, in timm (`timm.create_model("hf-hub:user/name")`). It holds
    the weights twice (`model.safetensors`, `model.weights.h5`), one
    `config.json` that all three read, exported files, and a model card.

    Args:
        classifier: A `Classifier` with a network of the builders, its top
            included, and a transform that normalises.
        repository: Owner and name, `"user/name"`. It is created if it does
            not exist.
        evaluation: What `keras_resnext.training.evaluate` returned for the
            classifier; the card's numbers come from it. Defaults to `None`:
            the card says that there are none.
        license: Licence of the weights, an SPDX identifier in lower case such
            as `"apache-2.0"`. Defaults to `None`: that of published weights,
            which cannot be another, or else the card says that none was
            given. Weights that were loaded from a repository keep its
            licence; look it up there.
        description: Paragraphs for the card, in Markdown: what it was trained
            on, what it is for, where it fails. Defaults to none.
        exports: A folder that `keras_resnext.export.export_files` wrote; its
            verified `.tflite` and `.onnx` files are published too. They must
            have been exported from this very classifier, without options that
            change what they take, and be unchanged since. Defaults to `None`.
        private: Whether a new repository is private. Defaults to `None`, the
            owner's default.
        overwrite: Whether to replace an existing repository's files. Exported
            files and reports that are not part of this push are deleted,
            others stay, and earlier commits stay in the history. Of a dry run,
            whether to replace an earlier one. Defaults to `False`.
        token: A token that may write. Defaults to `None`, that of
            `hf auth login` or `HF_TOKEN`.
        dry_run: A folder to write the repository to, instead of uploading it.
            Defaults to `None`.

    Returns:
        Address of the commit; of a dry run, the folder's path.

    Raises:
        ValueError: if an argument is not as described.
        FileExistsError: if the repository has files, or the folder exists,
            and `overwrite` is false.
        PermissionError: if the Hub refuses the token.
        ConnectionError: if the Hub cannot be reached or the connection is
            lost. Nothing that a reader can load was published then, or it
            says that this is not known.

    Example:

    >>> classifier = keras_resnext.Classifier.load("runs/mine")
    >>> evaluation = keras_resnext.training.evaluate(classifier, "photos/")
    >>> push_to_hub(classifier, "user/birds", evaluation=evaluation,
    ...             license="apache-2.0")
    'http.../user/birds/commit/...'

    Reference:
        The `model-index` of model cards:
        huggingface.co/docs/hub/model-cards.
    """
    name = _check_name(repository)
    contents.check_shareable(classifier)
    if evaluation is not None:
        check_evaluation(evaluation, classifier)
    license = _check_license(license, classifier.record)
    if not isinstance(description, str):
        raise ValueError(
            f"`description` must be a string; got {description!r}."
        )
    hub = _open(name, private, overwrite, token, dry_run)
    arguments = {
        "evaluation": evaluation,
        "license": license,
        "description": description,
        "exports": exports,
    }
    if hub is None:
        with staged(dry_run, overwrite=overwrite) as folder:
            _write(classifier, name, folder, **arguments)
        return str(dry_run)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary, "repository")
        _write(classifier, name, folder, **arguments)
        return hub.push(folder, private)


def check_target(
    repository: str,
    *,
    license: str | None = None,
    private: bool | None = None,
    overwrite: bool = False,
    token: str | None = None,
    dry_run: str | os.PathLike[str] | None = None,
) -> None:
    """Refuse, before long work, what `push_to_hub` could not write to.

    Args:
        repository: See `push_to_hub`, as the others.
        license: Defaults to `None`.
        private: Defaults to `None`.
        overwrite: Defaults to `False`.
        token: Defaults to `None`.
        dry_run: Defaults to `None`.

    Raises:
        ValueError: see `push_to_hub`, as the others.
        FileExistsError: likewise.
        PermissionError: likewise.
        ConnectionError: likewise.

    Example:

    >>> check_target("user/birds", dry_run="folder")
    """
    _check_license(license, None)
    _open(_check_name(repository), private, overwrite, token, dry_run)


def _check_name(repository):
    """Owner and name of a repository."""
    target = parse_repository(repository)
    if "@" in str(repository):
        raise ValueError(
            "`repository` must be user/name, without a revision; got "
            f"{repository!r}."
        )
    return target.name


def _check_license(license, record):
    """The licence to publish under."""
    if license is not None and not (
        isinstance(license, str) and re.fullmatch(_LICENSE, license)
    ):
        raise ValueError(
            "`license` must be None or an SPDX identifier in lower case, such "
            f'as "apache-2.0"; got {license!r}.'
        )
    if record and license not in (None, record.license):
        raise ValueError(
            f"`license` must be None or {record.license}, that of "
            f"{record.name}; got {license!r}."
        )
    return record.license if record else license


def _open(name, private, overwrite, token, dry_run):
    """The repository, checked; `None` if it is a folder, which is checked."""
    if private not in (None, True, False):
        raise ValueError(
            f"`private` must be None, True or False; got {private!r}."
        )
    if token is not None and not isinstance(token, str):
        raise ValueError("`token` must be None or a string.")
    require("huggingface_hub", extra="weights", purpose="push_to_hub")
    require("safetensors", extra="weights", purpose="push_to_hub")
    if dry_run is not None:
        check_free(dry_run, overwrite=overwrite)
        _check_replaceable(pathlib.Path(dry_run))
        return None
    hub = _Hub(name, token)
    hub.check(private, overwrite)
    return hub


def _check_replaceable(folder):
    """Refuse to replace a folder with anything but an earlier dry run."""
    others = [str(folder)]
    if not folder.exists():
        return
    if folder.is_dir():
        others = [p.name for p in folder.iterdir() if not contents.is_ours(p)]
    if others:
        raise FileExistsError(
            "`dry_run` must be new, empty or an earlier dry run; "
            f"{folder} has {', '.join(sorted(others)[:3])}."
        )


def _write(
    classifier,
    name,
    folder,
    *,
    evaluation,
    license,
    description,
    exports,
):
    """Write everything that the repository will hold."""
    report, files = contents.read_exports(exports, classifier)
    folder.mkdir()
    opens_in_timm = contents.write_models(classifier, folder)
    contents.copy_exports(report, files, folder)
    card = write_card(
        classifier,
        name,
        opens_in_timm=opens_in_timm,
        evaluation=evaluation,
        license=license,
        description=description,
        report=report,
        files=[(p.name, p.stat().st_size) for p in sorted(folder.iterdir())],
    )
    (folder / contents.CARD_FILE).write_text(card, encoding="utf-8")


class _Hub:
    """A repository to write to, through the Hub's own client."""

    def __init__(self, name, token):
        from huggingface_hub import HfApi
        from huggingface_hub import get_token

        self.name = name
        self.endpoint = hub_endpoint()
        self.before = None  # the repository as `check` found it
        token = get_token() if token is None else token
        if token is None:
            raise self.refusal("there is no token")
        if not re.fullmatch(r"[!-~]+", token):
            raise self.refusal("the token has characters that none has")
        self.api = HfApi(
            self.endpoint,
            token,
            library_name="keras_resnext",
            library_version=__version__,
        )

    def check(self, private, overwrite):
        """Refuse, before long work, what could not be pushed."""
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            raise ConnectionError(
                "push_to_hub needs the network; HF_HUB_OFFLINE is set. Use "
                "`dry_run` to write the repository to a folder."
            )
        if problem := connection_problem(self.endpoint):
            raise ConnectionError(
                f"The Hub cannot be reached ({problem}); nothing was "
                "published. Use `dry_run` to write the repository to a folder."
            )
        self.ask(self.api.whoami)
        self.before = self.look()
        if self.before is None:
            return
        files = self.files() - _EMPTY
        if files and not overwrite:
            raise FileExistsError(
                "`repository` must be new or empty unless `overwrite` is true; "
                f"{self.name} has {len(files)} files "
                f"({', '.join(sorted(files)[:3])}, ...)."
            )
        if private is not None and private != self.before.private:
            raise ValueError(
                f"`private` must be left out or {self.before.private}, as "
                f"{self.name} is; got {private}."
            )

    def look(self):
        """The repository as it is; `None` if there is none."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            return self.ask(self.api.model_info, self.name)
        except RepositoryNotFoundError:
            return None

    def files(self):
        """Names of the files that `check` or `push` found."""
        return {file.rfilename for file in self.before.siblings}

    def push(self, folder, private):
        """Upload a folder as one commit, without what an earlier one left."""
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub import CommitOperationDelete

        if self.before is None:
            self.ask(self.api.create_repo, self.name, private=private)
            self.before = self.look()
        paths = sorted(folder.iterdir())
        names = {path.name for path in paths}
        operations = [CommitOperationAdd(p.name, str(p)) for p in paths]
        operations += [
            CommitOperationDelete(old)
            for old in sorted(self.files() - names)
            if contents.is_ours(old)
        ]
        message = f"Push with keras_resnext {__version__}"
        try:
            commit = self.ask(
                self.api.create_commit,
                self.name,
                operations,
                commit_message=message,
                # Somebody else's commit in the meantime is not overwritten.
                parent_commit=self.before.sha,
            )
        except ConnectionError:
            # The commit may have arrived, and only its answer be lost.
            head = self.head_after_loss()
            if head == self.before.sha:
                raise
            commits = self.ask(self.api.list_repo_commits, self.name)
            if commits[0].title != message:
                raise
            return f"{self.endpoint}/{self.name}/commit/{head}"
        return commit.commit_url

    def head_after_loss(self):
        """The repository's newest commit, or an error if that is not known."""
        try:
            return self.look().sha
        except (ConnectionError, AttributeError):
            raise ConnectionError(
                f"The connection to the Hub was lost; whether {self.name} got "
                "the commit is not known. It is there as a whole or not at "
                f"all: look at {self.endpoint}/{self.name}."
            ) from None

    def ask(self, call, *arguments, **options):
        """One request or more to the Hub, or one line about why not."""
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            with quiet("huggingface_hub"), warnings.catch_warnings():
                # The Hub's about a card come in several lines.
                warnings.simplefilter("ignore", UserWarning)
                return call(*arguments, **options)
        except RepositoryNotFoundError:
            raise
        except HfHubHTTPError as error:
            raise self.explain(error) from None
        except ValueError as error:  # such as the Hub's about a card
            lines = "; ".join(map(str.strip, str(error).splitlines()))
            raise ValueError(
                f"The Hub refused {self.name} ({lines}); nothing was published."
            ) from None
        except TypeError:
            raise
        except Exception as error:  # of the HTTP client, whichever it is
            raise self.lost(first_line(error.__cause__ or error)) from None

    def explain(self, error):
        """The error to raise for an HTTP status."""
        status = error.response.status_code
        if status in (401, 403):
            return self.refusal(f"the Hub answered {status}")
        if status in (409, 412):
            return FileExistsError(
                f"{self.name} was changed by somebody else meanwhile; nothing "
                "of this push was published. Look at it, and push again."
            )
        if status >= 500:
            return self.lost(f"it answered {status}")
        lines = "; ".join(str(error).split("\n"))
        return ValueError(
            f"The Hub refused {self.name} ({lines}); nothing was published."
        )

    def refusal(self, reason):
        """The error about a token."""
        return PermissionError(
            f"The Hub does not let you write to {self.name} ({reason}); "
            "nothing was published. Log in with `hf auth login`, or set "
            "HF_TOKEN to a token that may write."
        )

    def lost(self, reason):
        """The error about a connection."""
        return ConnectionError(
            f"The connection to the Hub was lost ({reason}); nothing was "
            f"published to {self.name} that a reader can load. Push again."
        )
