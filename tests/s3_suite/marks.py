"""A pytest plugin: notes the marks of each test in the JUnit report, so that results can be told by feature."""

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    for item in items:
        marks = sorted({mark.name for mark in item.iter_markers() if mark.name != "parametrize"})
        item.user_properties.append(("marks", " ".join(marks)))
