"""Stands in for Airflow's Task SDK: a task's own function is its attribute `function`, as there."""

from types import SimpleNamespace


def task(**options: object):
    def decorated(function):
        node = lambda *arguments: SimpleNamespace(function=function, options=options, arguments=arguments)  # noqa: E731
        node.function, node.options = function, options
        return node

    return decorated


def dag(**options: object):
    return lambda function: function


def Param(default: object, **schema: object) -> object:
    return default
