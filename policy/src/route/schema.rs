//! The shapes of routes, for mistakes with positions. What the values mean is checked afterwards, in [`super::check`].

use crate::manifest::{Field, METADATA, Needed, Shape};

const fn field(name: &'static str, shape: &'static Shape) -> Field {
    Field { name, shape, needed: Needed::No }
}

const fn needed(name: &'static str, shape: &'static Shape) -> Field {
    Field { name, shape, needed: Needed::Yes }
}

const fn list(of: &'static Shape, most: usize) -> Shape {
    Shape::List { of, least: 1, most }
}

static VERSION: Shape = Shape::Choice(&["gateway.networking.k8s.io/v1"]);
static TEXT: Shape = Shape::Text(|_| Ok(()));
static DURATION: Shape = Shape::Text(|text| text.parse::<super::RouteDuration>().map(drop));
static LABEL: Shape = Shape::Text(|text| text.parse::<crate::Label>().map(drop).map_err(|problem| problem.to_string()));
static PORT: Shape = Shape::Number { least: 1, most: 65_535 };
static CORE: Shape = Shape::Choice(&[""]);
static SERVICE: Shape = Shape::Choice(&["Service"]);
static MATCH_TYPE: Shape = Shape::Choice(&["Exact", "RegularExpression"]);

/// An `HTTPRoute`.
pub(crate) static HTTP_ROUTE: Shape = Shape::Object(&[
    needed("apiVersion", &VERSION),
    needed("kind", &Shape::Choice(&["HTTPRoute"])),
    needed("metadata", &METADATA),
    needed("spec", &Shape::Object(&[needed("parentRefs", &PARENTS), needed("rules", &list(&HTTP_RULE, 16))])),
]);

/// A `GRPCRoute`.
pub(crate) static GRPC_ROUTE: Shape = Shape::Object(&[
    needed("apiVersion", &VERSION),
    needed("kind", &Shape::Choice(&["GRPCRoute"])),
    needed("metadata", &METADATA),
    needed("spec", &Shape::Object(&[needed("parentRefs", &PARENTS), needed("rules", &list(&GRPC_RULE, 16))])),
]);

static PARENTS: Shape = list(
    &Shape::Object(&[
        field("group", &CORE),
        needed("kind", &SERVICE),
        needed("name", &LABEL),
        field("namespace", &LABEL),
        field("port", &PORT),
    ]),
    32,
);

static HTTP_RULE: Shape = Shape::Object(&[
    field("name", &LABEL),
    field("matches", &list(&HTTP_MATCH, 64)),
    field("filters", &list(&FILTER, 16)),
    field("backendRefs", &list(&BACKEND, 16)),
    field("timeouts", &Shape::Object(&[field("request", &DURATION), field("backendRequest", &DURATION)])),
    field(
        "retry",
        &Shape::Object(&[
            field("codes", &list(&Shape::Number { least: 400, most: 599 }, 16)),
            field("attempts", &Shape::Number { least: 0, most: 5 }),
            field("backoff", &DURATION),
        ]),
    ),
]);

static GRPC_RULE: Shape = Shape::Object(&[
    field("name", &LABEL),
    field("matches", &list(&GRPC_MATCH, 64)),
    field("filters", &list(&FILTER, 16)),
    field("backendRefs", &list(&BACKEND, 16)),
]);

static VALUE_MATCH: Shape = Shape::Object(&[field("type", &MATCH_TYPE), needed("name", &TEXT), needed("value", &TEXT)]);

static HTTP_MATCH: Shape = Shape::Object(&[
    field(
        "path",
        &Shape::Object(&[field("type", &Shape::Choice(&["Exact", "PathPrefix", "RegularExpression"])), field("value", &TEXT)]),
    ),
    field("headers", &list(&VALUE_MATCH, 16)),
    field("queryParams", &list(&VALUE_MATCH, 16)),
    field("method", &TEXT),
]);

static GRPC_MATCH: Shape = Shape::Object(&[
    field("method", &Shape::Object(&[field("type", &MATCH_TYPE), field("service", &TEXT), field("method", &TEXT)])),
    field("headers", &list(&VALUE_MATCH, 16)),
]);

static BACKEND: Shape = Shape::Object(&[
    field("group", &CORE),
    field("kind", &SERVICE),
    needed("name", &LABEL),
    field("namespace", &LABEL),
    needed("port", &PORT),
    field("weight", &Shape::Number { least: 0, most: 1_000_000 }),
]);

static CHANGE: Shape = list(&Shape::Object(&[needed("name", &TEXT), needed("value", &TEXT)]), 16);
static CHANGES: Shape = Shape::Object(&[field("set", &CHANGE), field("add", &CHANGE), field("remove", &list(&TEXT, 16))]);
static PATH: Shape = Shape::Object(&[
    needed("type", &Shape::Choice(&["ReplaceFullPath", "ReplacePrefixMatch"])),
    field("replaceFullPath", &TEXT),
    field("replacePrefixMatch", &TEXT),
]);
static SHARE: Shape = Shape::Number { least: 0, most: 1_000_000 };

static FILTER: Shape = Shape::Object(&[
    needed(
        "type",
        &Shape::Choice(&["RequestHeaderModifier", "ResponseHeaderModifier", "RequestMirror", "RequestRedirect", "URLRewrite"]),
    ),
    field("requestHeaderModifier", &CHANGES),
    field("responseHeaderModifier", &CHANGES),
    field(
        "requestMirror",
        &Shape::Object(&[
            needed("backendRef", &BACKEND),
            field("percent", &Shape::Number { least: 0, most: 100 }),
            field("fraction", &Shape::Object(&[needed("numerator", &SHARE), field("denominator", &SHARE)])),
        ]),
    ),
    field(
        "requestRedirect",
        &Shape::Object(&[
            field("scheme", &Shape::Choice(&["http", "https"])),
            field("hostname", &TEXT),
            field("path", &PATH),
            field("port", &PORT),
            field("statusCode", &Shape::Number { least: 300, most: 399 }),
        ]),
    ),
    field("urlRewrite", &Shape::Object(&[field("path", &PATH)])),
]);
