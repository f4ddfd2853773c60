"""Images of a request: data URLs, and http(s) ones from allowed hosts. Everything about them is bounded.

An http(s) image is fetched in a way that a name cannot be pointed elsewhere between check and use: the name is
resolved once, every address is checked to be a public one, and the connection goes to the checked address (TLS still
verifies the name). Redirects are followed by hand, each through the same checks. File paths are never read.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from PIL import Image

from adaptprune._version import __version__
from adaptprune.errors import AdaptPruneError
from adaptprune.images import WEB_FORMATS, decode_image
from adaptprune.serve.errors import ServeError

MAX_REDIRECTS = 3
STEP = 2**20  # characters of base64, a multiple of 4
NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class ImageLimits:
    """What one request may bring.

    Attributes
    ----------
    max_images : int
    max_bytes : int
        Of one encoded image.
    max_pixels : int
        Of all images together, after decoding.
    hosts : tuple of str
        Hosts whose http(s) images are fetched: "example.com", "*.example.com", "example.com:8443"; "*" is every public
        one. Empty: none.
    timeout : float
        Seconds for one fetch, redirects included.
    """

    max_images: int = 16
    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    hosts: tuple[str, ...] = ()
    timeout: float = 10.0


def check_hosts(hosts: Sequence[str]) -> None:
    """Raise AdaptPruneError for what is no pattern of a host."""
    for host in hosts:
        if not re.fullmatch(r"(\*|(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)(:\d{1,5})?", host):
            raise AdaptPruneError(
                f"--allow-image-hosts {host!r} is not allowed: write example.com, *.example.com, example.com:8443 or *."
            )


def bad_image(message: str, param: str) -> ServeError:
    """400, because of an image."""
    return ServeError(400, "bad_image", message, param=param)


async def read(url: str, limits: ImageLimits, param: str) -> bytes:
    """The encoded image that a URL stands for.

    Raises
    ------
    ServeError
        400: not a data URL or an allowed address, too large, or not to be had.
    """
    scheme = url[:6].partition(":")[0].lower()
    if scheme == "data":
        return await asyncio.to_thread(_data_url, url, limits, param)
    if scheme in ("http", "https"):
        if not limits.hosts:
            raise bad_image(
                "this server fetches no images: send the image as a data URL (data:image/png;base64,...), or start the "
                "server with --allow-image-hosts.",
                param,
            )
        try:
            return await asyncio.wait_for(_fetch(url, limits, param), limits.timeout)
        except asyncio.TimeoutError:
            raise bad_image(f"the image was not delivered within {limits.timeout:g} seconds.", param) from None
    raise bad_image("an image has to be a data URL (data:image/png;base64,...) or an http(s) address.", param)


def _data_url(url: str, limits: ImageLimits, param: str) -> bytes:
    header, comma, body = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise bad_image("a data URL has to look like data:image/png;base64,...", param)
    if len(body) * 3 // 4 > limits.max_bytes + 4:
        raise _too_large(limits, param)
    try:
        data = _decoded(body)
    except (binascii.Error, ValueError) as error:
        raise bad_image(f"the base64 of a data URL is damaged or cut off ({error}).", param) from None
    if len(data) > limits.max_bytes:
        raise _too_large(limits, param)
    return data


def _decoded(body: str) -> bytes:
    """Bytes from base64, in steps that never hold the interpreter for long."""
    for mark in "\n\r ":  # what encoders for mail put in; anything else that is no base64 is an error
        body = body.replace(mark, "")
    if "=" in body[:-2]:
        raise ValueError("padding before the end")
    return b"".join(base64.b64decode(body[place : place + STEP], validate=True) for place in range(0, len(body), STEP))


def decode(encoded: list[tuple[bytes, str]], limits: ImageLimits) -> list[Image.Image]:
    """Pictures from encoded images, each with the part of the request that it came from. Slow: not for an event loop.

    Raises
    ------
    ServeError
        400: not an image, damaged, or too many pixels in all.
    """
    left, pictures = limits.max_pixels, []
    for data, param in encoded:
        try:
            picture = decode_image(data, param, max_pixels=left, formats=WEB_FORMATS)
        except AdaptPruneError as error:
            raise bad_image(str(error), param) from None
        left -= picture.width * picture.height
        pictures.append(picture)
    return pictures


def _too_large(limits: ImageLimits, param: str) -> ServeError:
    return bad_image(f"an image has more than the {limits.max_bytes:,} bytes that are allowed: make it smaller.", param)


# -- fetching ---------------------------------------------------------------------------------------------------------


async def _fetch(url: str, limits: ImageLimits, param: str) -> bytes:
    import httpx

    # no proxies from the environment: the connection has to go to the address that was checked
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=limits.timeout) as client:
        for _ in range(MAX_REDIRECTS + 1):
            request = await _request(client, url, limits, param)
            try:
                answer = await client.send(request, stream=True)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise bad_image(f"the image could not be fetched: {type(error).__name__}.", param) from None
            try:
                if answer.is_redirect:
                    url = urljoin(url, answer.headers.get("location", ""))
                    continue
                if answer.status_code != 200:
                    raise bad_image(f"the image's server answered {answer.status_code}.", param)
                return await _body(answer, limits, param)
            except httpx.HTTPError as error:
                raise bad_image(f"the image could not be fetched: {type(error).__name__}.", param) from None
            finally:
                await answer.aclose()
    raise bad_image(f"the image's address redirects more than {MAX_REDIRECTS} times.", param)


async def _request(client: Any, url: str, limits: ImageLimits, param: str) -> Any:
    """A request to a checked address, under the name that was asked for."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise bad_image("the image's address cannot be read.", param) from None
    if parts.scheme not in ("http", "https") or not host:
        raise bad_image("the image's address has to begin with http:// or https://.", param)
    if parts.username is not None or parts.password is not None:
        raise bad_image("an image's address may not contain a user name or a password.", param)
    usual = {"http": 80, "https": 443}[parts.scheme]
    if not allowed(host, port or usual, usual, limits.hosts):
        raise bad_image(f"images from {host!r} are not fetched: the server allows {', '.join(limits.hosts)}.", param)
    address = await _public_address(host, port or usual, param)
    literal = f"[{address}]" if ":" in address else address
    target = f"{parts.scheme}://{literal}:{port or usual}{parts.path or '/'}"
    name = f"[{host}]" if ":" in host else host
    headers = {
        "Host": name if (port or usual) == usual else f"{name}:{port}",
        "Accept-Encoding": "identity",
        "User-Agent": f"adaptprune/{__version__}",
    }
    return client.build_request(
        "GET", f"{target}?{parts.query}" if parts.query else target, headers=headers, extensions={"sni_hostname": host}
    )


def allowed(host: str, port: int, usual: int, hosts: tuple[str, ...]) -> bool:
    """Whether images may come from a host; a port other than the scheme's own has to be named."""
    host = host.lower().rstrip(".")
    for entry in hosts:
        pattern, _, named = (
            entry.lower().rpartition(":") if entry.rpartition(":")[2].isdigit() else (entry.lower(), "", "")
        )
        if port != (int(named) if named else usual):
            continue
        if pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:])):
            return True
    return False


async def _public_address(host: str, port: int, param: str) -> str:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise bad_image(f"the image's host {host!r} cannot be found.", param) from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise bad_image(f"the image's host {host!r} is not a public address, and only those are fetched from.", param)
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, with what it embeds (mapped, 6to4, Teredo, NAT64)."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner and not is_public(str(inner)):
            return False
        if ip.ipv4_mapped:
            return True
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified


async def _body(answer: Any, limits: ImageLimits, param: str) -> bytes:
    data = bytearray()
    async for piece in answer.aiter_raw():  # raw: a compressed body would grow behind the limit
        data += piece
        if len(data) > limits.max_bytes:
            raise _too_large(limits, param)
    return bytes(data)
