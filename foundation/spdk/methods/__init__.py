"""SPDK's methods as typed functions, one module a subject.

Each function has the method's own name, takes the caller first and parameters by their own names, and returns
what SPDK returns, as frozen structs. Parameters that are None are left out. Errors are those of ``SpdkClient.call``;
what a method's codes mean is told where it is not plain from the code.
"""
