//! Whether an expression holds for a call.
//!
//! Attributes that can be read in several ways (headers of several lines or elements, paths with parameters) are evaluated
//! in each: an allow needs the expression to hold in all of them, a deny in one. An attribute that is missing is an error,
//! which `&&` and `||` absorb as CEL says, and which a whole expression settles towards refusal.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use smallvec::SmallVec;

use super::When;
use super::attribute::Attribute;
use super::check::{Comparison, Logic, Number, Part, Text};
use crate::evaluate::{Facts, Reading};
use crate::header::{elements, trim};
use crate::{ServiceName, Target};

/// Most combinations of readings that are tried; more cannot be told.
const MAX_READINGS: usize = 64;

/// What an expression can know about the service that is called.
#[derive(Debug, Default)]
pub(crate) struct Destination {
    service: Option<ServiceName>,
    labels: BTreeMap<String, String>,
}

impl Destination {
    pub(crate) fn of(target: &Target) -> Self {
        Self { service: Some(target.service.clone()), labels: target.labels.clone() }
    }
}

/// The attribute is missing, or cannot be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unknown;

/// The values that a header may be read as.
type Values = SmallVec<[SmallVec<[u8; 64]>; 2]>;

/// How headers are taken apart.
#[derive(Clone, Copy)]
enum Split {
    Lines,
    Elements,
}

impl When {
    pub(crate) fn holds(&self, facts: &Facts<'_>, destination: &Destination, reading: Reading) -> bool {
        let lines = self.ambiguous(facts, Split::Lines);
        let lists = lines.iter().any(|(_, values)| values.iter().any(|value| value.contains(&b',')));
        let elements = if lists { Some(self.ambiguous(facts, Split::Elements)) } else { None };
        let mut readings = std::iter::once(&lines).chain(&elements);
        let evaluate = |values: &Ambiguous| self.evaluate(facts, destination, reading, values);
        // as for header conditions: an allow may read lists whole or taken apart, but one of the two throughout
        readings.any(evaluate)
    }

    /// The attributes of the expression that have several readings, with all of them.
    fn ambiguous(&self, facts: &Facts<'_>, split: Split) -> Ambiguous {
        let values = |attribute: &Attribute| match (attribute, facts.call.http) {
            (Attribute::RequestHeader(name), Some(http)) => {
                let mut values = Values::new();
                http.headers.visit(name, &mut |line| {
                    match split {
                        Split::Lines => values.push(trim(line).into()),
                        Split::Elements => values.extend(elements(line).map(SmallVec::from)),
                    }
                    ControlFlow::Continue(())
                });
                Some(values)
            }
            (Attribute::RequestPath, Some(_)) => {
                let mut values = Values::new();
                facts.forms.as_ref().into_iter().for_each(|forms| {
                    forms.all(|form| {
                        values.push(form.as_bytes().into());
                        true
                    });
                });
                Some(values)
            }
            _ => None,
        };
        self.attributes.iter().filter_map(|attribute| Some((attribute.clone(), values(attribute)?))).collect()
    }

    /// Evaluates every combination of readings; for an allow all of them must hold, for a deny one.
    fn evaluate(&self, facts: &Facts<'_>, destination: &Destination, reading: Reading, ambiguous: &Ambiguous) -> bool {
        let combinations = ambiguous.iter().map(|(_, values)| values.len().max(1)).try_fold(1usize, usize::checked_mul);
        let Some(combinations) = combinations.filter(|count| *count <= MAX_READINGS) else { return reading == Reading::Some };
        let mut holds = (0..combinations).map(|combination| {
            let view = View { facts, destination, ambiguous, combination };
            self.logic.value(&view).unwrap_or(reading == Reading::Some)
        });
        match reading {
            Reading::Some => holds.any(|holds| holds),
            Reading::Every => holds.all(|holds| holds),
        }
    }

    pub(crate) fn failure(&self) -> String {
        format!("`{self}` does not hold")
    }
}

type Ambiguous = SmallVec<[(Attribute, Values); 4]>;

/// A call in one of its readings.
struct View<'a> {
    facts: &'a Facts<'a>,
    destination: &'a Destination,
    ambiguous: &'a Ambiguous,
    combination: usize,
}

impl<'a> View<'a> {
    fn value(&self, attribute: &'a Attribute) -> Option<Cow<'a, [u8]>> {
        let call = self.facts.call;
        let http = call.http;
        let text = |text: Option<&'a str>| text.filter(|text| !text.is_empty()).map(|text| Cow::Borrowed(text.as_bytes()));
        let service = self.destination.service.as_ref();
        match attribute {
            Attribute::SourceIdentity => text(call.source.map(|id| id.as_str())),
            Attribute::SourceTrustDomain => text(call.source.map(|id| id.trust_domain())),
            Attribute::SourceNamespace => text(self.facts.namespace),
            Attribute::SourceServiceAccount => text(call.source.and_then(|id| id.service_account())),
            Attribute::SourceIp => Some(Cow::Owned(self.facts.source_ip.to_string().into_bytes())),
            Attribute::DestinationService => text(service.map(ServiceName::name)),
            Attribute::DestinationNamespace => text(service.map(ServiceName::namespace)),
            Attribute::DestinationLabel(key) => self.destination.labels.get(&**key).map(|value| Cow::Borrowed(value.as_bytes())),
            Attribute::RequestMethod => text(http.map(|http| http.method)),
            Attribute::RequestHost => text(http.map(|http| http.host)),
            // A request without a query is known to ask for nothing: that is no missing value.
            Attribute::RequestQuery => http.map(|http| Cow::Borrowed(http.query.unwrap_or_default().as_bytes())),
            Attribute::RequestPath | Attribute::RequestHeader(_) => self.reading(attribute).map(Cow::Borrowed),
            Attribute::ConnectionProtocol => Some(Cow::Borrowed(call.protocol.as_str().as_bytes())),
            Attribute::DestinationPort => Some(Cow::Owned(call.port.to_string().into_bytes())),
            Attribute::ConnectionMtls => Some(Cow::Borrowed(if call.source.is_some() { b"true" } else { b"false" })),
        }
    }

    /// The value that an ambiguous attribute has in this combination: the digits of the combination choose.
    fn reading(&self, wanted: &Attribute) -> Option<&'a [u8]> {
        let mut rest = self.combination;
        for (attribute, values) in self.ambiguous {
            let count = values.len().max(1);
            if attribute == wanted {
                return values.get(rest % count).map(|value| value.as_slice());
            }
            rest /= count;
        }
        None
    }
}

impl Logic {
    fn value<'a>(&'a self, view: &View<'a>) -> Result<bool, Unknown> {
        match self {
            Self::Constant(flag) => Ok(*flag),
            Self::Mtls => Ok(view.facts.call.source.is_some()),
            Self::Has(attribute) if attribute.is_http() && view.facts.call.http.is_none() => Err(Unknown),
            Self::Has(attribute) => Ok(view.value(attribute).is_some()),
            Self::Not(one) => one.value(view).map(|value| !value),
            Self::And(two) => absorb(two, view, false),
            Self::Or(two) => absorb(two, view, true),
            Self::If(three) => {
                let [condition, yes, no] = &**three;
                if condition.value(view)? { yes.value(view) } else { no.value(view) }
            }
            Self::Same(two) => {
                let [a, b] = &**two;
                Ok(a.value(view)? == b.value(view)?)
            }
            Self::Texts(comparison, a, b) => Ok(comparison.holds(&a.value(view)?, &b.value(view)?)),
            Self::Numbers(comparison, a, b) => Ok(comparison.holds(&a.value(view)?, &b.value(view)?)),
            Self::TextIn(text, list) => {
                let text = text.value(view)?;
                any(list.iter().map(|other| other.value(view).map(|other| other == text)))
            }
            Self::NumberIn(number, list) => {
                let number = number.value(view)?;
                any(list.iter().map(|other| other.value(view).map(|other| other == number)))
            }
            Self::Part(part, whole, piece) => Ok(part.is_in(&whole.value(view)?, &piece.value(view)?)),
            Self::Matches(text, regex) => Ok(regex.is_match(&text.value(view)?)),
        }
    }
}

/// `&&` (`settles` is false) and `||` (`settles` is true): one side that settles it makes up for an unknown other side.
fn absorb<'a>(two: &'a [Logic; 2], view: &View<'a>, settles: bool) -> Result<bool, Unknown> {
    let [a, b] = two;
    match a.value(view) {
        Ok(value) if value == settles => Ok(settles),
        first => match b.value(view) {
            Ok(value) if value == settles => Ok(settles),
            second => first.and(second),
        },
    }
}

fn any(mut values: impl Iterator<Item = Result<bool, Unknown>>) -> Result<bool, Unknown> {
    let mut unknown = false;
    let found = values.any(|value| {
        value.unwrap_or_else(|Unknown| {
            unknown = true;
            false
        })
    });
    if unknown && !found { Err(Unknown) } else { Ok(found) }
}

impl Text {
    fn value<'a>(&'a self, view: &View<'a>) -> Result<Cow<'a, [u8]>, Unknown> {
        match self {
            Self::Literal(text) => Ok(Cow::Borrowed(text.as_bytes())),
            Self::Attribute(attribute) => view.value(attribute).ok_or(Unknown),
            Self::Joined(two) => {
                let [a, b] = &**two;
                let mut joined = a.value(view)?.into_owned();
                joined.extend_from_slice(&b.value(view)?);
                Ok(Cow::Owned(joined))
            }
        }
    }
}

impl Number {
    fn value<'a>(&'a self, view: &View<'a>) -> Result<i64, Unknown> {
        match self {
            Self::Literal(number) => Ok(*number),
            Self::Port => Ok(i64::from(view.facts.call.port)),
            Self::Size(text) => {
                let value = text.value(view)?;
                let text = std::str::from_utf8(&value).map_err(|_| Unknown)?;
                i64::try_from(text.chars().count()).map_err(|_| Unknown)
            }
        }
    }
}

impl Comparison {
    fn holds<T: Ord + ?Sized>(self, a: &T, b: &T) -> bool {
        match self {
            Self::Equal => a == b,
            Self::NotEqual => a != b,
            Self::Less => a < b,
            Self::LessOrEqual => a <= b,
            Self::Greater => a > b,
            Self::GreaterOrEqual => a >= b,
        }
    }
}

impl Part {
    fn is_in(self, whole: &[u8], piece: &[u8]) -> bool {
        match self {
            Self::Beginning => whole.starts_with(piece),
            Self::End => whole.ends_with(piece),
            Self::Anywhere => piece.is_empty() || whole.windows(piece.len()).any(|window| window == piece),
        }
    }
}
