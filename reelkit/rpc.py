"""gRPC servers and channels with the options that long-lived streams need."""

from __future__ import annotations

import contextlib
from typing import Any

import grpc
from grpc import aio

# Internal clients ping this often, also without a call, so that a cut link or a stopped
# peer is noticed after the timeout and at most an interval more: 2.5 s. Servers must allow
# it, or they answer too_many_pings. grpc's own threads ping and answer: a Python process
# whose event loop is blocked is not taken for dead, nor does it take others for dead.
PING_INTERVAL_MS = 750
PING_TIMEOUT_MS = 1_750

# How often nodes and gateways report to a control plane in the time of their lease, which
# each report renews: two may be lost or late. 5,000 nodes' reports are most of its work.
REPORTS_PER_LEASE = 3

# One frame for a 256 KiB chunk instead of grpc's 16: a quarter less CPU per byte (measured).
_MAX_FRAME_BYTES = 512 * 1024

# A TLS handshake takes two round trips; who needs longer only holds the connection. grpc gives
# two minutes by itself.
HANDSHAKE_TIMEOUT_S = 10

# 256 KiB chunks and records below 16 KiB: nothing legitimate comes near this.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024


def server_options(*, max_message_bytes: int = MAX_MESSAGE_BYTES) -> list[tuple[str, Any]]:
    """Options of every server: pings of :data:`PING_INTERVAL_MS` are welcome."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS // 2),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.max_frame_size", _MAX_FRAME_BYTES),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_S * 1_000),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
    ]


def internal_channel_options() -> list[tuple[str, Any]]:
    """Options of channels between Reelmesh's own processes: notice a cut in seconds."""
    return [
        ("grpc.keepalive_time_ms", PING_INTERVAL_MS),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
        # A keepalive that finds grpc's own bandwidth probe on its way waits for that one
        # instead, whose timeout is a minute by default: a cut went unnoticed that long.
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Despite its name this is the time a connection attempt gets: with 100 ms a busy
        # server, or one an ocean away, was never reached.
        ("grpc.min_reconnect_backoff_ms", 2_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.http2.max_frame_size", _MAX_FRAME_BYTES),
        # One subchannel per address and channel: a broken one is not shared.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def internal_channel(
    address: str, *, credentials: grpc.ChannelCredentials | None = None, server_name: str = ""
) -> aio.Channel:
    """A channel to one of our own processes; plain text where no credentials are given.

    Args:
        address: host:port.
        credentials: What it shows and believes.
        server_name: The name that the server's certificate must hold; the host by default.
    """
    options = internal_channel_options()
    if credentials is None:
        return aio.insecure_channel(address, options=options)
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    return aio.secure_channel(address, credentials, options=options)


def listen(
    server: aio.Server, address: str, *, credentials: grpc.ServerCredentials | None = None
) -> int:
    """Binds ``host:port`` (port 0: a free one) and returns the port.

    Raises:
        OSError: The address cannot be bound; the message names it.
    """
    port = 0
    # grpc's own error says no more than that it failed; its log has the cause.
    with contextlib.suppress(RuntimeError):
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    if port == 0:
        raise OSError(f"cannot listen on {address}: is it in use, or not an address of this host?")
    return port


# What grpc says of a handshake, and what it means to whoever reads a log.
_HANDSHAKES = (
    ("WRONG_VERSION_NUMBER", "the other side speaks plain text; has it no mtls section?"),
    (
        "Hostname Verification Check failed",
        "its certificate is not of the role, region and id that belong at this address",
    ),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is over, or of an authority not in ca_file"),
    ("SIGNATURE", "its certificate is of an authority that is not in ca_file"),
    (
        "Socket closed",
        "it hung up at once: it takes no plain text, or not the certificate that it was shown",
    ),
)


def in_words(details: str | None) -> str:
    """Grpc's own words on a connection that failed, led by what they mean where that is known."""
    text = details or ""
    if "failed to connect" not in text:
        return text
    meaning = next((words for sign, words in _HANDSHAKES if sign in text), "")
    return f"{meaning} ({text})" if meaning else text
