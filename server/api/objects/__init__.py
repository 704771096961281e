"""The objects that the server sends, as types: one module a resource. They know no requests and do nothing.

A key that is not always there is `NotRequired`; there are no others. Answers are checked against them by the tests,
and the OpenAPI document is made of them.
"""
