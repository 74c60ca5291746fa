//! From CEL's syntax tree to a typed tree that can be evaluated without surprises.

use cel::common::ast::{Expr, IdedExpr, LiteralValue, operators};
use cel::parser::Parser;

use super::attribute::{Attribute, AttributeType, PLAIN};
use super::{MAX_EXPRESSION_DEPTH, WhenProblem};
use crate::header::{HeaderRegex, header_name};
use crate::manifest::nearest;

/// An expression that is true or false.
#[derive(Debug, Clone)]
pub(super) enum Logic {
    Constant(bool),
    /// `connection.mtls`
    Mtls,
    /// `has(…)` and `"…" in …`
    Has(Attribute),
    Not(Box<Logic>),
    And(Box<[Logic; 2]>),
    Or(Box<[Logic; 2]>),
    If(Box<[Logic; 3]>),
    Same(Box<[Logic; 2]>),
    Texts(Comparison, Text, Text),
    Numbers(Comparison, Number, Number),
    TextIn(Text, Box<[Text]>),
    NumberIn(Number, Box<[Number]>),
    Part(Part, Text, Text),
    Matches(Text, HeaderRegex),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Beginning,
    End,
    Anywhere,
}

#[derive(Debug, Clone)]
pub(super) enum Text {
    Literal(Box<str>),
    Attribute(Attribute),
    Joined(Box<[Text; 2]>),
}

#[derive(Debug, Clone)]
pub(super) enum Number {
    Literal(i64),
    Port,
    Size(Box<Text>),
}

/// An expression of any type.
enum Typed {
    Logic(Logic),
    Text(Text),
    Number(Number),
    Texts(Vec<Text>),
    Numbers(Vec<Number>),
}

impl Typed {
    fn what(&self) -> &'static str {
        match self {
            Self::Logic(_) => "a condition",
            Self::Text(_) => "a text",
            Self::Number(_) => "a number",
            Self::Texts(_) => "a list of texts",
            Self::Numbers(_) => "a list of numbers",
        }
    }
}

pub(super) fn read(text: &str) -> Result<Logic, WhenProblem> {
    let parsed = Parser::new().max_recursion_depth(MAX_EXPRESSION_DEPTH).error_recovery_limit(4).parse(text);
    let parsed = parsed.map_err(|errors| {
        let first = errors.errors.first();
        WhenProblem::Syntax(match first {
            // the parser says it in words of its own
            Some(error) if error.msg.contains("Recursion limit") => format!("nested deeper than {MAX_EXPRESSION_DEPTH}"),
            Some(error) => format!("{} at character {}", short(&error.msg), error.pos.1),
            None => String::new(),
        })
    })?;
    // the parser bounds its own descent, but not the depth of a chain such as `a || a || …`, which it balances
    if depth(&parsed, 0) > MAX_DEPTH {
        return Err(WhenProblem::Syntax("nested too deeply".to_owned()));
    }
    match typed(&parsed)? {
        Typed::Logic(logic) => Ok(logic),
        other => {
            Err(WhenProblem::Type(format!("the expression is {}, not a condition: compare it with something", other.what())))
        }
    }
}

/// Deepest syntax tree that is read.
const MAX_DEPTH: usize = 64;

fn depth(node: &IdedExpr, at: usize) -> usize {
    if at > MAX_DEPTH {
        return at;
    }
    let deepest = |nodes: &mut dyn Iterator<Item = &IdedExpr>| nodes.map(|node| depth(node, at + 1)).max().unwrap_or(at);
    match &node.expr {
        Expr::Call(call) => deepest(&mut call.target.as_deref().into_iter().chain(&call.args)),
        Expr::List(list) => deepest(&mut list.elements.iter()),
        Expr::Select(select) => depth(&select.operand, at + 1),
        // refused by `typed` without looking inside
        _ => at,
    }
}

fn short(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(160).collect()
}

fn typed(node: &IdedExpr) -> Result<Typed, WhenProblem> {
    match &node.expr {
        Expr::Literal(literal) => literal_value(literal),
        Expr::Ident(_) | Expr::Select(_) => attribute(node),
        Expr::List(list) => list_of(&list.elements),
        Expr::Call(call) => {
            let arguments: Vec<&IdedExpr> = call.target.as_deref().into_iter().chain(&call.args).collect();
            function(&call.func_name, &arguments)
        }
        Expr::Comprehension(_) => Err(WhenProblem::Unsupported("a macro over a list".to_owned())),
        Expr::Map(_) | Expr::Struct(_) => Err(WhenProblem::Unsupported("{…}".to_owned())),
        Expr::Unspecified => Err(WhenProblem::Syntax("an empty part".to_owned())),
    }
}

fn literal_value(literal: &LiteralValue) -> Result<Typed, WhenProblem> {
    match literal {
        LiteralValue::Boolean(flag) => Ok(Typed::Logic(Logic::Constant(*flag.inner()))),
        LiteralValue::String(text) => Ok(Typed::Text(Text::Literal(text.inner().into()))),
        LiteralValue::Int(number) => Ok(Typed::Number(Number::Literal(*number.inner()))),
        LiteralValue::UInt(number) => match i64::try_from(*number.inner()) {
            Ok(number) => Ok(Typed::Number(Number::Literal(number))),
            Err(_) => Err(WhenProblem::Type("the number is too large".to_owned())),
        },
        LiteralValue::Bytes(_) => Err(WhenProblem::Unsupported("b\"…\"".to_owned())),
        LiteralValue::Double(_) => Err(WhenProblem::Unsupported("a number with a fraction".to_owned())),
        LiteralValue::Null => Err(WhenProblem::Unsupported("null".to_owned())),
    }
}

/// `a.b.c` as it is written, and whether it stands in `has(…)`.
fn dotted(node: &IdedExpr) -> Option<(String, bool)> {
    match &node.expr {
        Expr::Ident(name) => Some((name.trim_start_matches('.').to_owned(), false)),
        Expr::Select(select) => dotted(&select.operand).map(|(name, _)| (format!("{name}.{}", select.field), select.test)),
        _ => None,
    }
}

fn attribute(node: &IdedExpr) -> Result<Typed, WhenProblem> {
    let (name, test) = dotted(node).ok_or_else(|| WhenProblem::Unsupported("a field of a value".to_owned()))?;
    let attribute = named(&name)?;
    Ok(if test { Typed::Logic(Logic::Has(attribute)) } else { value_of(attribute) })
}

fn value_of(attribute: Attribute) -> Typed {
    match attribute.kind() {
        AttributeType::Text => Typed::Text(Text::Attribute(attribute)),
        AttributeType::Number => Typed::Number(Number::Port),
        AttributeType::Flag => Typed::Logic(Logic::Mtls),
    }
}

fn named(name: &str) -> Result<Attribute, WhenProblem> {
    if let Some(attribute) = Attribute::plain(name) {
        return Ok(attribute);
    }
    if let Some(key) = name.strip_prefix("request.headers.") {
        return keyed("request.headers", key);
    }
    if let Some(key) = name.strip_prefix("destination.labels.") {
        return keyed("destination.labels", key);
    }
    match name {
        "request.headers" => Err(WhenProblem::Key("request.headers")),
        "destination.labels" => Err(WhenProblem::Key("destination.labels")),
        _ if name == "jwt" || name.starts_with("jwt.") => Err(WhenProblem::NotYet(name.to_owned())),
        _ => {
            let names: Vec<&'static str> =
                PLAIN.iter().map(|(name, _)| *name).chain(["request.headers", "destination.labels"]).collect();
            Err(WhenProblem::UnknownAttribute { name: short(name), nearest: nearest(name, &names) })
        }
    }
}

fn keyed(map: &str, key: &str) -> Result<Attribute, WhenProblem> {
    match map {
        "request.headers" => Ok(Attribute::RequestHeader(header_name(key)?)),
        _ => Ok(Attribute::DestinationLabel(key.into())),
    }
}

/// The map that `node` names, if it is one.
fn map_name(node: &IdedExpr) -> Option<&'static str> {
    let (name, _) = dotted(node)?;
    ["request.headers", "destination.labels"].into_iter().find(|map| *map == name)
}

fn text_literal(node: &IdedExpr) -> Option<&str> {
    match &node.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

fn list_of(elements: &[IdedExpr]) -> Result<Typed, WhenProblem> {
    let (mut texts, mut numbers) = (Vec::new(), Vec::new());
    for element in elements {
        match typed(element)? {
            Typed::Text(text) => texts.push(text),
            Typed::Number(number) => numbers.push(number),
            other => return Err(WhenProblem::Type(format!("a list holds texts or numbers, not {}", other.what()))),
        }
    }
    match (texts.is_empty(), numbers.is_empty()) {
        (false, true) => Ok(Typed::Texts(texts)),
        (true, false) => Ok(Typed::Numbers(numbers)),
        (true, true) => Err(WhenProblem::Type("an empty list holds nothing".to_owned())),
        (false, false) => Err(WhenProblem::Type("a list holds texts or numbers, not both".to_owned())),
    }
}

fn function(name: &str, arguments: &[&IdedExpr]) -> Result<Typed, WhenProblem> {
    use operators as op;
    match (name, arguments) {
        (op::INDEX, [map, key]) => {
            let map = map_name(map).ok_or_else(|| {
                WhenProblem::Unsupported("[…] on anything but `request.headers` and `destination.labels`".to_owned())
            })?;
            keyed(map, text_literal(key).ok_or(WhenProblem::Key(map))?).map(value_of)
        }
        (op::IN, [key, map]) if map_name(map).is_some() => {
            let map = map_name(map).unwrap_or_default();
            let key = text_literal(key)
                .ok_or_else(|| WhenProblem::Type(format!("write the key that is looked for in `{map}` in quotes")))?;
            Ok(Typed::Logic(Logic::Has(keyed(map, key)?)))
        }
        (op::IN, [value, list]) => contained(typed(value)?, typed(list)?),
        (op::LOGICAL_NOT, [one]) => Ok(Typed::Logic(Logic::Not(Box::new(logic(one)?)))),
        (op::LOGICAL_AND, [a, b]) => Ok(Typed::Logic(Logic::And(Box::new([logic(a)?, logic(b)?])))),
        (op::LOGICAL_OR, [a, b]) => Ok(Typed::Logic(Logic::Or(Box::new([logic(a)?, logic(b)?])))),
        (op::CONDITIONAL, [c, a, b]) => Ok(Typed::Logic(Logic::If(Box::new([logic(c)?, logic(a)?, logic(b)?])))),
        (op::EQUALS, [a, b]) => compared(Comparison::Equal, typed(a)?, typed(b)?),
        (op::NOT_EQUALS, [a, b]) => compared(Comparison::NotEqual, typed(a)?, typed(b)?),
        (op::LESS, [a, b]) => compared(Comparison::Less, typed(a)?, typed(b)?),
        (op::LESS_EQUALS, [a, b]) => compared(Comparison::LessOrEqual, typed(a)?, typed(b)?),
        (op::GREATER, [a, b]) => compared(Comparison::Greater, typed(a)?, typed(b)?),
        (op::GREATER_EQUALS, [a, b]) => compared(Comparison::GreaterOrEqual, typed(a)?, typed(b)?),
        (op::ADD, [a, b]) => Ok(Typed::Text(Text::Joined(Box::new([text(a)?, text(b)?])))),
        (op::NEGATE, [one]) => match typed(one)? {
            Typed::Number(Number::Literal(number)) => Ok(Typed::Number(Number::Literal(number.saturating_neg()))),
            other => Err(WhenProblem::Type(format!("`-` before {}", other.what()))),
        },
        ("startsWith", [a, b]) => Ok(Typed::Logic(Logic::Part(Part::Beginning, text(a)?, text(b)?))),
        ("endsWith", [a, b]) => Ok(Typed::Logic(Logic::Part(Part::End, text(a)?, text(b)?))),
        ("contains", [a, b]) => Ok(Typed::Logic(Logic::Part(Part::Anywhere, text(a)?, text(b)?))),
        ("size", [one]) => Ok(Typed::Number(Number::Size(Box::new(text(one)?)))),
        ("matches", [value, pattern]) => {
            let pattern = text_literal(pattern)
                .ok_or_else(|| WhenProblem::Type("write the regular expression of `matches` in quotes".to_owned()))?;
            Ok(Typed::Logic(Logic::Matches(text(value)?, HeaderRegex::searching(pattern)?)))
        }
        _ => Err(WhenProblem::Unsupported(short(name.trim_matches('_')))),
    }
}

fn logic(node: &IdedExpr) -> Result<Logic, WhenProblem> {
    match typed(node)? {
        Typed::Logic(logic) => Ok(logic),
        other => Err(WhenProblem::Type(format!("expected a condition, found {}", other.what()))),
    }
}

fn text(node: &IdedExpr) -> Result<Text, WhenProblem> {
    match typed(node)? {
        Typed::Text(text) => Ok(text),
        other => Err(WhenProblem::Type(format!("expected a text, found {}", other.what()))),
    }
}

fn contained(value: Typed, list: Typed) -> Result<Typed, WhenProblem> {
    match (value, list) {
        (Typed::Text(text), Typed::Texts(texts)) => Ok(Typed::Logic(Logic::TextIn(text, texts.into()))),
        (Typed::Number(number), Typed::Numbers(numbers)) => Ok(Typed::Logic(Logic::NumberIn(number, numbers.into()))),
        (value, list) => Err(WhenProblem::Type(format!("{} is never in {}", value.what(), list.what()))),
    }
}

fn compared(comparison: Comparison, a: Typed, b: Typed) -> Result<Typed, WhenProblem> {
    let logic = match (a, b) {
        (Typed::Text(a), Typed::Text(b)) => Logic::Texts(comparison, a, b),
        (Typed::Number(a), Typed::Number(b)) => Logic::Numbers(comparison, a, b),
        (Typed::Logic(a), Typed::Logic(b)) if comparison == Comparison::Equal => Logic::Same(Box::new([a, b])),
        (Typed::Logic(a), Typed::Logic(b)) if comparison == Comparison::NotEqual => {
            Logic::Not(Box::new(Logic::Same(Box::new([a, b]))))
        }
        (a, b) => return Err(WhenProblem::Type(format!("{} cannot be compared with {}", a.what(), b.what()))),
    };
    Ok(Typed::Logic(logic))
}

impl Logic {
    /// Calls `each` with every attribute that is read.
    pub(super) fn attributes(&self, each: &mut dyn FnMut(&Attribute)) {
        match self {
            Self::Constant(_) => {}
            Self::Mtls => each(&Attribute::ConnectionMtls),
            Self::Has(attribute) => each(attribute),
            Self::Not(one) => one.attributes(each),
            Self::And(two) | Self::Or(two) | Self::Same(two) => two.iter().for_each(|one| one.attributes(each)),
            Self::If(three) => three.iter().for_each(|one| one.attributes(each)),
            Self::Texts(_, a, b) | Self::Part(_, a, b) => [a, b].into_iter().for_each(|text| text.attributes(each)),
            Self::Numbers(_, a, b) => [a, b].into_iter().for_each(|number| number.attributes(each)),
            Self::TextIn(text, list) => std::iter::once(text).chain(list).for_each(|text| text.attributes(each)),
            Self::NumberIn(number, list) => std::iter::once(number).chain(list).for_each(|number| number.attributes(each)),
            Self::Matches(text, _) => text.attributes(each),
        }
    }
}

impl Text {
    fn attributes(&self, each: &mut dyn FnMut(&Attribute)) {
        match self {
            Self::Literal(_) => {}
            Self::Attribute(attribute) => each(attribute),
            Self::Joined(two) => two.iter().for_each(|text| text.attributes(each)),
        }
    }
}

impl Number {
    fn attributes(&self, each: &mut dyn FnMut(&Attribute)) {
        match self {
            Self::Literal(_) => {}
            Self::Port => each(&Attribute::DestinationPort),
            Self::Size(text) => text.attributes(each),
        }
    }
}
