"""What a clock is here: a function that gives the present, aware and in UTC."""

from collections.abc import Callable
from datetime import datetime

Clock = Callable[[], datetime]
"""Passed in wherever time matters, so that a test can hold it still."""
