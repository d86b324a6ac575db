"""`push_to_hub`: one commit with everything, or nothing."""

import os
import pathlib
import tempfile
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
    `config.json` for the three, exported files, and a model card.

    Args:
        classifier: A `Classifier` with a network of the builders, its top
            included, and a transform that normalises.
        repository: Owner and name, `"user/name"`. It is created if it does
            not exist.
        evaluation: What `keras_resnext.training.evaluate` returned for the
            classifier; the card's numbers come from it. Defaults to `None`:
            the card says that there are none.
        license: Licence of the weights, an SPDX identifier in lower case such
            as `"apache-2.0"`. Defaults to that of published weights, and
            `None` otherwise: the card says that there is none.
        description: Paragraphs for the card, in Markdown: what it was trained
            on, what it is for, where it fails. Defaults to none.
        exports: A folder that `keras_resnext.export.export_files` wrote; its
            verified `.tflite` and `.onnx` files are published too, after they
            were compared with the classifier once more. Defaults to `None`.
        private: Whether a new repository is private. Defaults to `None`, the
            owner's default.
        overwrite: Whether to replace the files of a repository that has some.
            Earlier commits stay in its history. Defaults to `False`.
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
            lost. Nothing was published then.

    Example:

    >>> classifier = keras_resnext.Classifier.load("runs/mine")
    >>> evaluation = keras_resnext.training.evaluate(classifier, "photos/")
    >>> push_to_hub(classifier, "user/birds", evaluation=evaluation,
    ...             license="apache-2.0", exports="runs/mine/export")
    'https://huggingface.co/user/birds/commit/0123456789abcdef'

    Reference:
        The `model-index` of model cards:
        huggingface.co/docs/hub/model-cards.
    """
    name = _check_name(repository)
    contents.check_shareable(classifier)
    if evaluation is not None:
        check_evaluation(evaluation, classifier)
    if license is None and classifier.record:
        license = classifier.record.license
    hub = _open(name, private, overwrite, token, dry_run)
    arguments = {
        "evaluation": evaluation,
        "license": license,
        "description": description,
        "exports": exports and pathlib.Path(exports),
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
    private: bool | None = None,
    overwrite: bool = False,
    token: str | None = None,
    dry_run: str | os.PathLike[str] | None = None,
) -> None:
    """Refuse, before long work, what `push_to_hub` could not write to.

    Args:
        repository: See `push_to_hub`, as the others.
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
    _open(_check_name(repository), private, overwrite, token, dry_run)


def _check_name(repository):
    """Owner and name of a repository."""
    target = parse_repository(repository)
    if target.revision != "main":
        raise ValueError(
            "`repository` must be user/name, without a revision; got "
            f"{repository!r}."
        )
    return target.name


def _open(name, private, overwrite, token, dry_run):
    """The repository, checked; `None` if it is a folder, which is checked."""
    require("huggingface_hub", extra="weights", purpose="push_to_hub")
    require("safetensors", extra="weights", purpose="push_to_hub")
    if dry_run is not None:
        check_free(dry_run, overwrite=overwrite)
        return None
    hub = _Hub(name, token)
    hub.check(private, overwrite)
    return hub


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
    contents.write_models(classifier, folder)
    contents.copy_exports(files, exports, folder)
    card = write_card(
        classifier,
        name,
        opens_in_timm=contents.timm_model(classifier) is not None,
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

        self.name = name
        self.endpoint = hub_endpoint()
        self.api = HfApi(
            self.endpoint,
            token,
            library_name="keras_resnext",
            library_version=__version__,
        )
        self.before = None  # what `check` found

    def check(self, private, overwrite):
        """Refuse, before long work, what could not be pushed."""
        from huggingface_hub import constants
        from huggingface_hub.errors import RepositoryNotFoundError

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
        self._ask(self.api.whoami)
        try:
            self.before = self._ask(self.api.model_info, self.name)
        except RepositoryNotFoundError:
            return
        files = {file.rfilename for file in self.before.siblings} - _EMPTY
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

    def push(self, folder, private):
        """Upload a folder as one commit, without what an earlier one left."""
        from huggingface_hub import CommitOperationAdd
        from huggingface_hub import CommitOperationDelete

        if self.before is None:
            self._ask(self.api.create_repo, self.name, private=private)
        paths = sorted(folder.iterdir())
        operations = [CommitOperationAdd(p.name, str(p)) for p in paths]
        if self.before is not None:
            mine = {
                *contents.KERAS_FILES,
                contents.REPORT_FILE,
                contents.REPORT_PICTURE,
            }
            operations += [
                CommitOperationDelete(old.rfilename)
                for old in self.before.siblings
                if (
                    old.rfilename in mine
                    or old.rfilename.endswith(contents.EXPORT_SUFFIXES)
                )
                and old.rfilename not in {path.name for path in paths}
            ]
        commit = self._ask(
            self.api.create_commit,
            self.name,
            operations,
            commit_message=f"Push with keras_resnext {__version__}",
            # Somebody else's commit in the meantime is not overwritten.
            parent_commit=self.before and self.before.sha,
        )
        return commit.commit_url

    def _ask(self, call, *arguments, **options):
        """One request or more to the Hub, or one line about why not."""
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.errors import LocalTokenNotFoundError
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            with quiet("huggingface_hub"):
                return call(*arguments, **options)
        except LocalTokenNotFoundError:
            raise _refusal(self, "there is no token") from None
        except RepositoryNotFoundError:
            raise
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in (401, 403):
                raise _refusal(self, f"the Hub answered {status}") from None
            if status in (409, 412):
                raise FileExistsError(
                    f"{self.name} was changed by somebody else meanwhile; "
                    "nothing of this push was published. Look at it, and push "
                    "again."
                ) from None
            if status < 500:
                raise ValueError(
                    f"The Hub refused {self.name} ({first_line(error)}); "
                    "nothing was published."
                ) from None
            raise _lost(self, f"it answered {status}") from None
        except (TypeError, ValueError):
            raise
        except Exception as error:  # of the HTTP client, whichever it is
            raise _lost(self, first_line(error.__cause__ or error)) from None


def _refusal(hub, reason):
    return PermissionError(
        f"The Hub does not let you write to {hub.name} ({reason}); nothing "
        "was published. Log in with `hf auth login`, or set HF_TOKEN to a "
        "token that may write."
    )


def _lost(hub, reason):
    return ConnectionError(
        f"The connection to the Hub was lost ({reason}) before the commit of "
        f"{hub.name}, so that no reader can load half of it. Push again."
    )
