//! Rows about names: SPIFFE IDs, other kinds, other places, every byte.

use outrider_tests::good_leaf;
use rcgen::{CertificateParams, CustomExtension, DnType};

use super::makers::*;

/// SPIFFE IDs as they stand in the one URI name.
pub(super) fn ids() -> Vec<(&'static [u8], Verdict)> {
    vec![
        (b"spiffe://mesh.internal/ns/shop/sa/web", Good),
        (b"spiffe://mesh.internal/ns/a-b/sa/c.d_e", Good),
        (b"spiffe://mesh.internal", NO_ID),
        (b"spiffe://mesh.internal/", NO_ID),
        (b"spiffe://mesh.internal//", NO_ID),
        (b"spiffe://mesh.internal/ns", NO_ID),
        (b"spiffe://mesh.internal/ns/shop", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web/", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web/x", NO_ID),
        (b"spiffe://mesh.internal/ns//sa/web", NO_ID),
        (b"spiffe://mesh.internal//ns/shop/sa/web", NO_ID),
        (b"spiffe://mesh.internal/./ns/shop/sa/web", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/.", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/..", NO_ID),
        (b"spiffe://mesh.internal/ns/x/../shop/sa/web", NO_ID),
        (b"spiffe://mesh.internal/NS/shop/SA/web", NO_ID),
        (b"spiffe://mesh.internal/sa/web/ns/shop", NO_ID),
        (b"spiffe://mesh.internal/operator/ann", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/%77eb", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web%00", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web\0", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web\0.evil", NO_ID),
        (b"spiffe://mesh.internal\0.evil/ns/shop/sa/web", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web?x=1", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web#x", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web;x", NO_ID),
        (b"spiffe://mesh.internal:443/ns/shop/sa/web", NO_ID),
        (b"spiffe://user@mesh.internal/ns/shop/sa/web", NO_ID),
        (b"spiffe://user:password@mesh.internal/ns/shop/sa/web", NO_ID),
        (b"spiffe://Mesh.Internal/ns/shop/sa/web", NO_ID),
        (b"spiffe://[::1]/ns/shop/sa/web", NO_ID),
        (b"spiffe:///ns/shop/sa/web", NO_ID),
        (b"spiffe:/mesh.internal/ns/shop/sa/web", NO_ID),
        (b"SPIFFE://mesh.internal/ns/shop/sa/web", NO_ID),
        (b"Spiffe://mesh.internal/ns/shop/sa/web", NO_ID),
        (b"http://mesh.internal/ns/shop/sa/web", NO_ID),
        (b"https://mesh.internal/ns/shop/sa/web", NO_ID),
        (b"urn:spiffe://mesh.internal/ns/shop/sa/web", NO_ID),
        (b"//mesh.internal/ns/shop/sa/web", NO_ID),
        (b" spiffe://mesh.internal/ns/shop/sa/web", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web ", NO_ID),
        (b"spiffe://mesh.internal/ns/shop/sa/web\n", NO_ID),
        (b"", NO_ID),
        (b"spiffe://", NO_ID),
        (b"spiffe://mesh.internal./ns/shop/sa/web", FOREIGN),
        (b"spiffe://.mesh.internal/ns/shop/sa/web", FOREIGN),
        (b"spiffe://a.mesh.internal/ns/shop/sa/web", FOREIGN),
        (b"spiffe://internal/ns/shop/sa/web", FOREIGN),
        (b"spiffe://mesh.internal.evil.example/ns/shop/sa/web", FOREIGN),
        (b"spiffe://evil.example/ns/shop/sa/web", FOREIGN),
        (b"spiffe://mesh_internal/ns/shop/sa/web", FOREIGN),
        (b"spiffe://xn--mesh-internal/ns/shop/sa/web", FOREIGN),
    ]
}

/// Other ways to write names.
pub(super) fn names(makers: &Makers) -> Vec<Row> {
    let web = || uri(WEB.as_bytes());
    let upn = [0x2b, 6, 1, 4, 1, 0x82, 0x37, 20, 2, 3];
    let long = format!("spiffe://mesh.internal/ns/shop/sa/{}", "w".repeat(2048));
    let twice = {
        let mut parameters = with_names(&[web()]);
        parameters.custom_extensions.push(CustomExtension::from_oid_content(&SAN, der(0x30, &uri(ORDERS.as_bytes()))));
        parameters
    };
    let critical = {
        let mut parameters = good_leaf(&[]);
        parameters.custom_extensions.push(extension(&SAN, true, der(0x30, &web())));
        parameters
    };
    let rows: Vec<(&str, CertificateParams, Verdict)> = vec![
        ("no names at all", good_leaf(&[]), URI_NAMES),
        ("an empty list of names", with_names(&[]), BAD),
        ("two URIs", with_names(&[web(), uri(ORDERS.as_bytes())]), URI_NAMES),
        ("the same URI twice", with_names(&[web(), web()]), URI_NAMES),
        ("a SPIFFE ID and another URI", with_names(&[web(), uri(b"https://example.com/")]), URI_NAMES),
        ("another URI and a SPIFFE ID", with_names(&[uri(b"https://example.com/"), web()]), URI_NAMES),
        ("a hundred URIs", with_names(&vec![web(); 100]), URI_NAMES),
        ("names in two extensions", twice, BAD),
        ("names marked critical", critical, Good),
        ("a DNS name beside the URI", with_names(&[web(), dns(b"web.shop")]), Good),
        ("a DNS name before the URI", with_names(&[dns(b"web.shop"), web()]), Good),
        ("an address beside the URI", with_names(&[web(), der(0x87, &[127, 0, 0, 1])]), Good),
        ("a mail name beside the URI", with_names(&[web(), der(0x81, b"web@shop.example")]), Good),
        ("a DNS name alone", with_names(&[dns(b"web.shop")]), URI_NAMES),
        ("the ID as DNS name", with_names(&[dns(WEB.as_bytes())]), URI_NAMES),
        ("the ID as mail name", with_names(&[der(0x81, WEB.as_bytes())]), URI_NAMES),
        ("the ID as otherName", with_names(&[other_name(&upn, WEB.as_bytes())]), KIND),
        ("an otherName beside the URI", with_names(&[web(), other_name(&upn, b"ann")]), KIND),
        (
            "an otherName with a NUL beside the URI",
            with_names(&[web(), other_name(&upn, b"spiffe://mesh.internal/a\0.evil")]),
            KIND,
        ),
        ("a registered id beside the URI", with_names(&[web(), der(0x88, &upn)]), KIND),
        ("a directory name beside the URI", with_names(&[web(), der(0xa4, &der(0x30, &[]))]), KIND),
        ("a name of a class that does not exist", with_names(&[web(), der(0x8f, b"x")]), BAD),
        ("an ID of more than 2048 bytes", with_names(&[uri(long.as_bytes())]), Refused("is not acceptable")),
        (
            "the ID in UTF-8 with a letter beyond ASCII",
            with_names(&[uri("spiffe://mesh.internal/ns/shop/sa/wéb".as_bytes())]),
            BAD,
        ),
        (
            "the ID in the common name only",
            {
                let mut parameters = good_leaf(&[]);
                parameters.distinguished_name.push(DnType::CommonName, WEB);
                parameters
            },
            URI_NAMES,
        ),
        ("another ID in the common name", spoiled(|leaf| leaf.distinguished_name.push(DnType::CommonName, ORDERS)), Good),
        (
            "a name that is cut off",
            {
                let mut parameters = good_leaf(&[]);
                parameters
                    .custom_extensions
                    .push(CustomExtension::from_oid_content(&SAN, vec![0x30, 0x20, 0x86, 0x1e, b's', b'p']));
                parameters
            },
            BAD,
        ),
        (
            "bytes after the names",
            {
                let mut parameters = good_leaf(&[]);
                let content = [der(0x30, &web()), vec![5, 0]].concat();
                parameters.custom_extensions.push(CustomExtension::from_oid_content(&SAN, content));
                parameters
            },
            BAD,
        ),
    ];
    rows.into_iter().map(|(what, parameters, verdict)| row(what, makers.leaf(&parameters), verdict)).collect()
}

/// Every byte in the trust domain and in the path.
pub(super) fn bytes(makers: &Makers) -> Vec<Row> {
    let mut rows = Vec::new();
    for byte in 0..=255_u8 {
        let c = char::from(byte);
        let domain = [&b"spiffe://mesh"[..], &[byte], b"internal/ns/shop/sa/web"].concat();
        let verdict = match byte {
            b'.' => Good,
            _ if c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_".contains(&byte) => FOREIGN,
            // The domain ends there, and another path begins.
            _ => BAD,
        };
        rows.push(row(format!("byte {byte:#04x} in the trust domain"), makers.leaf(&with_names(&[uri(&domain)])), verdict));
        let path = [&b"spiffe://mesh.internal/ns/shop/sa/w"[..], &[byte], b"b"].concat();
        let verdict = if c.is_ascii_alphanumeric() || b".-_".contains(&byte) { Good } else { BAD };
        rows.push(row(format!("byte {byte:#04x} in the path"), makers.leaf(&with_names(&[uri(&path)])), verdict));
    }
    rows
}
