"""Settings of the Django app. The database is a file of this process, which goes with it."""

import atexit
import shutil
import tempfile
from pathlib import Path

_FOLDER = tempfile.mkdtemp(prefix="tidegate-django-")
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)

SECRET_KEY = "a secret of the tests"
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.frameworks.django_site"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(Path(_FOLDER) / "db.sqlite3")}}
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "tests.frameworks.django_people",
]
AUTH_USER_MODEL = "django_people.Person"
MIDDLEWARE = [
    "django.middleware.common.CommonMiddleware",  # as a new project has it; it states the length of each response
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "tests.frameworks.django_site.refusals",
]
USE_TZ = True
LOGGING_CONFIG = None
