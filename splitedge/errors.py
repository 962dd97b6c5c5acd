"""The one exception hierarchy. Every error splitedge raises on purpose is a `SplitedgeError`.

SplitedgeError
  ConfigError            a setting is wrong: an unknown key, a bad value, a missing file
    MissingExtra         an optional dependency is not installed
    UnknownName          no codec, policy or route of that name is registered
  PartitionError         the model could not be captured or cut
  CodecError             a payload could not be made or read
  PolicyError            a policy can not work with this deployment
  BundleError            a bundle on disk is damaged, foreign or of another version
  RecordError            a record file can not be read
  TraceError             a channel trace can not be read or replayed
  SimulationError        a simulation can not be run, or its policy failed in it
  WireError              bytes from the network broke the protocol
  LinkError              the link to the cloud
    AuthenticationError  the peer refused our key, or is not who we trust
    LinkDown             no connection to the cloud
  RequestError           how one request ended without an answer
    DeadlineExceeded     no route could answer in time
    CloudBusy            the cloud refused the work for lack of room (has `retry_after_s`)
    CloudUnavailable     the cloud could not be reached and nothing local can answer
    CloudFailed          the cloud ran the request and failed
    EdgeFailed           the device failed to compute the request and nothing else can answer
    RequestCancelled     the caller went away before the answer
    Rejected             the edge refused the request (its queue is full, it is shutting down)
"""

from __future__ import annotations


class SplitedgeError(Exception):
    """Base of every error raised on purpose by splitedge."""


class ConfigError(SplitedgeError, ValueError):
    """A setting is wrong; the message names it and says what is allowed."""


class MissingExtra(ConfigError):
    """An optional dependency is needed and not installed."""

    def __init__(self, extra: str, needed_for: str) -> None:
        self.extra = extra
        super().__init__(f"{needed_for} needs the extra '{extra}': pip install 'splitedge[{extra}]'")


class UnknownName(ConfigError):
    """A name that no plug-in registered."""


class PartitionError(SplitedgeError):
    """The model could not be captured or cut; the message names the construct and the way out."""


class CodecError(SplitedgeError):
    """A payload could not be made or read: damaged, truncated, oversized or of another codec."""


class PolicyError(SplitedgeError):
    """A policy can not work with this deployment (a route it needs is missing, say)."""


class BundleError(SplitedgeError):
    """A bundle on disk is damaged, foreign or of an unknown schema version."""


class RecordError(SplitedgeError):
    """A file of records can not be read or written."""


class TraceError(SplitedgeError):
    """A channel trace can not be read or replayed."""


class SimulationError(SplitedgeError):
    """A simulation can not be run: too large for its mode, or its policy failed."""


class WireError(SplitedgeError):
    """Bytes from the network broke the protocol: wrong version, bad header, sizes that do not agree."""


class LinkError(SplitedgeError):
    """The link to the cloud."""


class AuthenticationError(LinkError):
    """The peer refused our key, or its key is not the one we trust."""


class LinkDown(LinkError):
    """There is no connection to the cloud."""


class RequestError(SplitedgeError):
    """How one request ended without an answer."""


class DeadlineExceeded(RequestError):
    """No route could answer before the deadline."""


class CloudBusy(RequestError):
    """The cloud refused the work for lack of room."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class CloudUnavailable(RequestError):
    """The cloud could not be reached and nothing on the device can answer."""


class CloudFailed(RequestError):
    """The cloud ran the request and failed."""


class Rejected(RequestError):
    """The edge refused the request: its queue is full or it is shutting down."""


class EdgeFailed(RequestError):
    """The device failed to compute the request and nothing else can answer."""


class RequestCancelled(RequestError):
    """The caller went away before the answer."""
