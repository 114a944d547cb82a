"""A pytest plugin: notes the marks of each test in the JUnit report, so that results can be told by feature, and takes a share
of the tests. QUARRY_SHARE is "days/WHICH/OF": of those that wait for days of lifecycle rules; "rest/WHICH/OF": of all others; or "all/WHICH/OF"."""

import os

import pytest


def waits_for_days(marks, name):
    """Headers and configurations name days without waiting for them, and have to see whole ones."""
    return bool({"lifecycle_expiration", "delete_marker"} & marks) and "lifecycle" in " ".join(marks) and "header" not in name


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    kind, which, count = os.environ.get("QUARRY_SHARE", "rest/0/1").split("/")
    mine = []
    for item in items:
        marks = {mark.name for mark in item.iter_markers() if mark.name != "parametrize"}
        if kind == "all" or waits_for_days(marks, item.name) == (kind == "days"):
            item.user_properties.append(("marks", " ".join(sorted(marks))))
            mine.append(item)
    items[:] = mine[int(which)::int(count)]
