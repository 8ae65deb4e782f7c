"""Who may sign in."""

from typing import ClassVar

from django.contrib.auth.models import AbstractBaseUser
from django.db import models

__all__ = ["Person"]


class Person(AbstractBaseUser):
    """A user of one tenant."""

    USERNAME_FIELD = "username"
    REQUIRED_FIELDS: ClassVar[list[str]] = ["tenant"]
    username = models.CharField(max_length=40, unique=True)
    tenant = models.CharField(max_length=40)
