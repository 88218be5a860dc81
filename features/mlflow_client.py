"""What MLflow's stores answer, and what only looks like an answer: a store that is away is never "there is none"."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from features.errors import InputError


class NoAnswerError(InputError):
    """A store of MLflow gave no answer; that says nothing of what it holds."""


@contextmanager
def answering(where: str) -> Iterator[None]:
    """Raise NoAnswerError for an error of MLflow's stores: it is never the answer "there is none"."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of a file here, not of a server
            raise
        code = getattr(error, "error_code", type(error).__name__)
        cause = " ".join(str(error).split("[SQL:")[0].split())[:200]
        problem = f"tracking server or registry gave no answer ({code}: {cause})"
        raise NoAnswerError(where, problem, "mend MLFLOW_TRACKING_URI or what it names, then run the same command again") from error


def aliased(client: Any, name: str, alias: str) -> Any:
    """The version of a model that an alias names; None only where the registry says that there is no such model or alias.

    MLflow tells a missing alias, an alias whose version is gone and a broken store by the same exception, two of them even by the
    same code. So the model is asked for, which answers with its aliases. Raises NoAnswerError for everything else.
    """
    from mlflow.exceptions import MlflowException

    with answering(f"models:/{name}@{alias}"):
        try:
            model = client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if model.name != name:
            raise MlflowException(f"asked for {name}, it answered with {model.name!r}")
        version = model.aliases.get(alias)
        return None if version is None else client.get_model_version(name, str(version))
