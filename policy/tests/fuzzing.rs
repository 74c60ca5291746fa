//! The checks of `fuzz/` on a stable compiler: over a corpus, and over random variations of it.
#![expect(clippy::expect_used, reason = "a test may stop at what it did not expect")]

#[path = "../fuzz/src/checks.rs"]
#[expect(unreachable_pub, reason = "the fuzz targets name these checks from outside")]
mod checks;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// `text` with some of its bytes replaced, doubled or left out.
fn variations(texts: &'static [&'static str], pieces: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    (select(texts), vec((any::<Index>(), 0..4u8, select(pieces)), 0..6)).prop_map(|(text, edits)| {
        let mut bytes = text.as_bytes().to_vec();
        for (at, edit, piece) in edits {
            let at = at.index(bytes.len().max(1)).min(bytes.len());
            match edit {
                0 => drop(bytes.splice(at..at, piece.bytes())),
                1 => drop(bytes.splice(at..bytes.len().min(at + 1), piece.bytes())),
                2 => bytes.truncate(at),
                _ => {
                    let rest = bytes.split_off(at);
                    bytes.extend_from_slice(&rest);
                    bytes.extend(rest);
                }
            }
        }
        bytes.truncate(4096);
        bytes
    })
}

const YAML: &[&str] = &[
    "apiVersion: outrider.dev/v1alpha1\nkind: ServicePolicy\nmetadata: { name: a, namespace: b }\nspec:\n  mtls: { mode: Strict, ports: { 8080: Permissive } }\n  authorization:\n    rules:\n      - name: r\n        action: Allow\n        from: [{ principals: ['*'], notIpBlocks: [10.0.0.0/8] }]\n        to: [{ paths: ['/a/{x}'], headers: [{ name: a, regex: 'b*' }] }]\n        when: 'source.namespace == \"b\"'\n",
    "{\"apiVersion\": \"outrider.dev/v1alpha1\", \"kind\": \"PolicyTest\", \"metadata\": {\"name\": \"t\"}, \"spec\": {\"cases\": [{\"name\": \"c\", \"given\": {\"destination\": {\"service\": \"a/b\", \"port\": 1}, \"request\": {}}, \"expect\": {\"effect\": \"deny\"}}]}}",
    "a: &x [1, *x]\n--- !!str b\n? c\n: |\n  d\n",
];
const YAML_PIECES: &[&str] = &[
    "\n", "  ", "- ", ": ", "{", "}", "[", "]", "&a ", "*a", "!!int ", "\"", "'", "|", ">", "#", "---\n", "\u{feff}", "\t", "?",
    "<<: ", "0x1F", "1e999", "~", "\0", "é", "spec: ", "rules: ", ",",
];
const PATHS: &[&str] = &["/a/b;c=d/e", "/%61%2e%2E/..", "/x%25%32%66y", "/a//b", "[::1]:80", "files.shop.:0080", "/caf%c3%a9"];
const PATH_PIECES: &[&str] =
    &["/", "%", "%2", "%2f", "%25", ".", "..", ";", "%3B", "%21", ":", "@", "[", "]", "\\", "\0", "é", "a", "0"];
const WHEN: &[&str] = &[
    "source.namespace == 'shop' && !(request.path.matches('^/a') || size(request.query) > 3)",
    "request.headers['a'] in ['b', \"c\"] ? connection.mtls : has(request.headers.x)",
    "'x' in request.headers && destination.port in [1, -2]",
];
const WHEN_PIECES: &[&str] = &[
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "'",
    "\"",
    "\\",
    "&&",
    "||",
    "!",
    "?",
    ":",
    ".",
    "a",
    "0",
    "1u",
    "0x",
    "1e9",
    "-",
    "b'x'",
    "r'",
    "\n",
    "//",
    "true",
    "null",
    "in",
    ".all(x, x)",
    "é",
    "\0",
    "`",
];
const REQUESTS: &[&str] = &["aGET /a/b admin", "bCONNECT", "cOPTIONS *", "\u{1}GET /%61;x user,admin  ", "zPOST / \u{7f} a,b"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_a_file_of_policies_or_says_where_it_is_not(data in variations(YAML, YAML_PIECES)) {
        checks::yaml(&data);
    }

    #[test]
    fn any_bytes_are_a_path_or_a_host_with_one_spelling_or_none(data in variations(PATHS, PATH_PIECES)) {
        checks::path(&data);
    }

    #[test]
    fn any_text_is_an_expression_or_is_refused(data in variations(WHEN, WHEN_PIECES)) {
        checks::when(&data);
    }

    #[test]
    fn any_request_is_decided_and_explained_alike(data in variations(REQUESTS, PATH_PIECES)) {
        checks::decide(&data);
    }
}

#[test]
fn the_corpus_passes_unchanged() {
    YAML.iter().for_each(|text| checks::yaml(text.as_bytes()));
    PATHS.iter().for_each(|text| checks::path(text.as_bytes()));
    WHEN.iter().for_each(|text| checks::when(text.as_bytes()));
    REQUESTS.iter().for_each(|text| checks::decide(text.as_bytes()));
    assert!(WHEN.iter().all(|text| outrider_policy::when::When::new(text).is_ok()));
}
