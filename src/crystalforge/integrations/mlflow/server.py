"""MLflow's server with its basic-auth app: nobody reads or writes without an account.

    python -m crystalforge.integrations.mlflow.server --host 0.0.0.0 --port 5000 --workers 2

Everything secret comes from the environment and goes into no argument, so that neither a list of processes nor a log
shows it. Arguments are those of `mlflow server`. The variables:

    MLFLOW_BACKEND_STORE_URI          database, of accounts as well (tables of their own)
    MLFLOW_ARTIFACTS_DESTINATION      where artifacts go
    MLFLOW_AUTH_ADMIN_PASSWORD        of the account `admin`, made at the first start (MLFLOW_AUTH_ADMIN_USERNAME)
    MLFLOW_FLASK_SERVER_SECRET_KEY    for the sign-up page's tokens; the same for all workers
    CRYSTALFORGE_ACCOUNT_USERNAME     an account for learners, pipeline steps and whoever materialises rewards; made, or
    CRYSTALFORGE_ACCOUNT_PASSWORD     given this password, at each start: a changed Secret and a restart rotate it

Whoever has an account may read and write; only an experiment's or a model's maker and the admin may delete it. Accounts
of people are made by the admin, at /signup or by `mlflow.server.get_app_client("basic-auth", address)`.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from crystalforge.common.errors import InputError, missing_extra

DATABASE, ADMIN_PASSWORD, KEY = (
    "MLFLOW_BACKEND_STORE_URI",
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "MLFLOW_FLASK_SERVER_SECRET_KEY",
)
USERNAME, PASSWORD = "CRYSTALFORGE_ACCOUNT_USERNAME", "CRYSTALFORGE_ACCOUNT_PASSWORD"
SHORTEST = 12  # characters of a password, as MLflow itself demands of new ones


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to end; exit code 2 and one message where something needed is missing."""
    try:
        with tempfile.TemporaryDirectory(prefix="mlflow-auth-") as folder:
            _prepare(Path(folder))
            from mlflow.cli import cli

            words = sys.argv[1:] if arguments is None else list(arguments)
            cli.main(["server", "--app-name=basic-auth", *words], prog_name="mlflow", standalone_mode=False)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _prepare(folder: Path) -> None:
    """Write the app's settings and make the account."""
    values = {name: os.environ.get(name, "") for name in (DATABASE, ADMIN_PASSWORD, KEY, USERNAME, PASSWORD)}
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise InputError(
            f"{', '.join(missing)} must be set", source="environment", remedy="make the secrets: docs/how-to/cluster.md"
        )
    for name in (ADMIN_PASSWORD, PASSWORD):
        if len(values[name]) < SHORTEST:
            raise InputError(
                f"{name} has {len(values[name])} characters", remedy=f"give at least {SHORTEST}: openssl rand -hex 24"
            )
    settings = folder / "auth.ini"
    settings.touch(mode=0o600)
    settings.write_text(
        "[mlflow]\n"
        "default_permission = EDIT\n"
        f"database_uri = {values[DATABASE].replace('%', '%%')}\n"
        f"admin_username = {os.environ.get('MLFLOW_AUTH_ADMIN_USERNAME', 'admin')}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    os.environ["MLFLOW_AUTH_CONFIG_PATH"] = str(settings)
    try:
        from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore
    except ImportError as error:
        raise missing_extra("mlflow[auth]", "platform", error) from None
    store = SqlAlchemyStore()
    store.init_db(values[DATABASE])
    if not store.has_user(values[USERNAME]):
        store.create_user(values[USERNAME], values[PASSWORD])
    elif not store.authenticate_user(values[USERNAME], values[PASSWORD]):
        store.update_user(values[USERNAME], password=values[PASSWORD])


if __name__ == "__main__":
    raise SystemExit(main())
