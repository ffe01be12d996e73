"""
The one form of XML signature that NVIDIA's RIMs have, and no other.

1. The document is UTF-8, without a DTD, comments, processing instructions or ``xml:`` attributes:
   no entities to expand, nothing to fetch, nothing that a canonical form would treat specially.
2. Exactly one Signature, a child of the root element; exactly the elements below, in this order;
   exactly these algorithms; one Reference, to the whole document (URI ``""``).
3. The digest is over the canonical document without the Signature, so all that is not the
   signature itself is signed, and nothing can be wrapped around it or moved.
4. SignedInfo, canonical, is signed by the first certificate in KeyInfo.
5. What is returned is the canonical form that was digested: readers read what was signed.

Canonical XML 1.1 differs from 1.0, which lxml offers, only in ``xml:`` attributes inherited by a
part of a document (1.1, section 2.4), and rule 1 leaves none.

Source: W3C XML Signature Syntax and Processing 1.1; RFC 4051 (SHA-384, ECDSA); RFC 6931 (r || s).
lxml is in the extra ``nvidia`` and is loaded when the first RIM comes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from aigovtool.attestation.x509chain import (
    MAX_CHAIN_CERTIFICATES,
    load_certificates,
    name_of,
)
from aigovtool.errors import ConfigurationError, MalformedError, TooLargeError, VerificationError

MALFORMED = "nvidia.rim_malformed"
UNTRUE = "nvidia.rim_signature"

MAX_DOCUMENT_BYTES = 1 << 20  # RIMs have some 20 kB
SIGNATURE_BYTES = 96  # ECDSA P-384, r || s

_DS = "{http://www.w3.org/2000/09/xmldsig#}"
_C14N = "http://www.w3.org/2006/12/xml-c14n11"
_ECDSA_SHA384 = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384"
_SHA384 = "http://www.w3.org/2001/04/xmldsig-more#sha384"
_ENVELOPED = "http://www.w3.org/2000/09/xmldsig#enveloped-signature"
_XML_ATTRIBUTE = "{http://www.w3.org/XML/1998/namespace}"

# The shape of a Signature: an element, its attributes, its children; texts are checked apart.
_Shape = tuple[str, dict[str, str], tuple["_Shape", ...]]
_SIGNED_INFO: _Shape = (
    "SignedInfo",
    {},
    (
        ("CanonicalizationMethod", {"Algorithm": _C14N}, ()),
        ("SignatureMethod", {"Algorithm": _ECDSA_SHA384}, ()),
        (
            "Reference",
            {"URI": ""},
            (
                (
                    "Transforms",
                    {},
                    (
                        ("Transform", {"Algorithm": _ENVELOPED}, ()),
                        ("Transform", {"Algorithm": _C14N}, ()),
                    ),
                ),
                ("DigestMethod", {"Algorithm": _SHA384}, ()),
                ("DigestValue", {}, ()),
            ),
        ),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedDocument:
    """
    A document whose signature holds under its own first certificate.

    Args:
        root: its root element, read anew from what was digested; an lxml element.
        certificates: as they stand in KeyInfo; nobody has judged them yet.
    """

    root: Any
    certificates: tuple[x509.Certificate, ...]


def verify_signed_document(data: bytes) -> SignedDocument:
    """
    Check an enveloped signature; the numbers are those of this module.

    Raises:
        ConfigurationError: lxml is not installed.
        MalformedError: not such a document, or another form of signature.
        VerificationError: the digest or the signature does not hold.
    """
    etree = _lxml()
    root = _parse(etree, data)  # 1
    signature = _signature_element(root)  # 2
    signed_info, value, certificates = _read_signature(signature)
    canonical_info = _canonical(etree, signed_info)
    digest = _base64(signed_info.find(f"{_DS}Reference/{_DS}DigestValue"))
    _remove(signature)
    canonical = _canonical(etree, root)
    if hashlib.sha384(canonical).digest() != digest:  # 3
        raise VerificationError(
            "a RIM is not what its signature is about",
            code=UNTRUE,
            expected=digest.hex(),
            came=hashlib.sha384(canonical).hexdigest(),
        )
    _verify(certificates[0], value, canonical_info)  # 4
    return SignedDocument(root=_parse(etree, canonical), certificates=certificates)  # 5


def _lxml() -> Any:
    # Any: lxml has no types of its own
    try:
        return importlib.import_module("lxml.etree")
    except ImportError:
        raise ConfigurationError(
            "RIMs are signed XML, and lxml is not installed",
            code="nvidia.extra",
            mend="install aigovtool[nvidia]",
        ) from None


def _parse(etree: Any, data: bytes) -> Any:
    if len(data) > MAX_DOCUMENT_BYTES:
        raise TooLargeError(
            "RIM too large",
            code=MALFORMED,
            expected=f"at most {MAX_DOCUMENT_BYTES} bytes",
            came=f"{len(data)} bytes",
        )
    # A DTD is refused before libxml2 sees it; UTF-8 alone, so that it cannot be written otherwise.
    if b"\0" in data or b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise MalformedError("RIM with a document type", code=MALFORMED)
    parser = etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=False,
        recover=False,
    )
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError):
        raise MalformedError("RIM is not well-formed XML", code=MALFORMED) from None
    for node in root.iter():
        # comments, processing instructions and entities have a function for a tag
        if not isinstance(node.tag, str) or any(
            name.startswith(_XML_ATTRIBUTE) for name in node.attrib
        ):
            raise MalformedError(
                "RIM with a comment, an instruction, an entity or an xml: attribute",
                code=MALFORMED,
            )
    if root.getprevious() is not None or root.getnext() is not None:
        raise MalformedError("RIM with something beside its root element", code=MALFORMED)
    return root


def _canonical(etree: Any, element: Any) -> bytes:
    try:
        return bytes(etree.tostring(element, method="c14n"))
    except etree.C14NError:  # such as a relative namespace URI
        raise MalformedError("RIM without a canonical form", code=MALFORMED) from None


def _signature_element(root: Any) -> Any:
    found = list(root.iter(f"{_DS}Signature"))
    if len(found) != 1 or found[0].getparent() is not root:
        raise MalformedError(
            "RIM without exactly one signature below its root element",
            code=MALFORMED,
            came=str(len(found)),
        )
    return found[0]


def _read_signature(signature: Any) -> tuple[Any, bytes, tuple[x509.Certificate, ...]]:
    tags = [child.tag for child in signature]
    if tags != [f"{_DS}SignedInfo", f"{_DS}SignatureValue", f"{_DS}KeyInfo"] or signature.attrib:
        raise MalformedError("RIM signature of another form", code=MALFORMED)
    signed_info, value, key_info = signature
    _check_shape(signed_info, _SIGNED_INFO)
    data = list(key_info)
    if [child.tag for child in data] != [f"{_DS}X509Data"]:
        raise MalformedError("RIM signature without X509Data alone", code=MALFORMED)
    certificates = list(data[0])
    if (
        not 0 < len(certificates) <= MAX_CHAIN_CERTIFICATES
        or {child.tag for child in certificates} != {f"{_DS}X509Certificate"}
        or any(len(child) for child in certificates)
    ):
        raise MalformedError(
            "RIM signature with something else than certificates",
            code=MALFORMED,
            expected=f"1 to {MAX_CHAIN_CERTIFICATES} X509Certificate",
        )
    chain = tuple(
        load_certificates(_base64(child), what="certificate of a RIM")[0] for child in certificates
    )
    return signed_info, _base64(value), chain


def _check_shape(element: Any, shape: _Shape) -> None:
    name, attributes, children = shape
    if (
        element.tag != f"{_DS}{name}"
        or dict(element.attrib) != attributes
        or len(element) != len(children)
    ):
        raise MalformedError(
            "RIM signature of another form",
            code=MALFORMED,
            expected=f"{name} with {attributes} and {len(children)} children",
            came=f"{element.tag.removeprefix(_DS)!r} with {dict(element.attrib)}",
        )
    for child, child_shape in zip(element, children, strict=True):
        _check_shape(child, child_shape)


def _base64(element: Any) -> bytes:
    """Read base64 in its one spelling: the bits that its last character does not use are zero."""
    text = "".join((element.text or "").split())
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data or base64.b64encode(data).decode() != text:
        raise MalformedError("RIM signature that is not base64", code=MALFORMED)
    return data


def _remove(signature: Any) -> None:
    """Take the signature out and leave the white space after it, which is signed, where it was."""
    parent, before = signature.getparent(), signature.getprevious()
    if signature.tail:
        if before is None:
            parent.text = (parent.text or "") + signature.tail
        else:
            before.tail = (before.tail or "") + signature.tail
    parent.remove(signature)


def _verify(signer: x509.Certificate, value: bytes, message: bytes) -> None:
    r, s = int.from_bytes(value[: len(value) // 2]), int.from_bytes(value[len(value) // 2 :])
    try:
        key = signer.public_key()
        if (
            not isinstance(key, ec.EllipticCurvePublicKey)
            or key.curve.name != "secp384r1"
            or len(value) != SIGNATURE_BYTES
        ):
            raise MalformedError("RIM not signed by a P-384 key", code=MALFORMED)
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        raise VerificationError(f"a RIM is not signed by {name_of(signer)}", code=UNTRUE) from None
