"""A pytest plugin: notes the marks of each test in the JUnit report, so that results can be told by feature, and takes every
n-th test where several nodes share the suite (QUARRY_SHARE is "which/of how many")."""

import os

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    which, count = map(int, os.environ.get("QUARRY_SHARE", "0/1").split("/"))
    items[:] = items[which::count]
    for item in items:
        marks = sorted({mark.name for mark in item.iter_markers() if mark.name != "parametrize"})
        item.user_properties.append(("marks", " ".join(marks)))
