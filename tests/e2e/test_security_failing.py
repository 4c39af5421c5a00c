"""What fails, is slow, or is too much: nothing passes undecided, and others are served meanwhile."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import ssl
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import h2.config
import h2.connection
import hpack
import hyperframe.frame
import psutil_free  # noqa: F401
import pytest
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc

from tests.e2e.conftest import GRACE, World
