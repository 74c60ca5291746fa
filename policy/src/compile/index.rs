//! Which rules can hold for a call at all.
//!
//! Each dimension of a call (who, path, method, host, port) leaves some rules in the race: those that name its value, and
//! those that do not care. Only rules that are left by every dimension are evaluated, so that the cost of a decision does
//! not grow with the rules that cannot match. The index may leave too many, never too few: the rule itself has the last word.

use std::ops::ControlFlow;

use smallvec::SmallVec;

use super::posting::{NameMap, Posting, Union, intersect};
use super::trie::PathTrie;
use crate::evaluate::{Facts, Reading};
use crate::pattern::Pattern;
use crate::rule::{Operation, Rule, Source};

/// The rules of one action, by number in the order of their names.
#[derive(Debug, Default)]
pub(super) struct Index {
    total: usize,
    principals: NameMap<Box<str>, Posting>,
    accounts: NameMap<Box<str>, Posting>,
    namespaces: NameMap<Box<str>, Posting>,
    any_caller: Posting,
    paths: PathTrie,
    any_path: Posting,
    methods: NameMap<Box<str>, Posting>,
    any_method: Posting,
    hosts: NameMap<Box<str>, Posting>,
    any_host: Posting,
    ports: NameMap<u16, Posting>,
    any_port: Posting,
}

impl Index {
    pub(super) fn of<'r>(rules: impl Iterator<Item = &'r Rule>) -> Self {
        let mut index = Self::default();
        for (number, rule) in (0u32..).zip(rules) {
            index.add(number, rule);
            index.total += 1;
        }
        index.seal();
        index
    }

    fn add(&mut self, number: u32, rule: &Rule) {
        if rule.from.is_empty() {
            self.any_caller.add(number);
        }
        rule.from.iter().for_each(|source| self.add_source(number, source));
        if rule.to.is_empty() {
            self.add_operation(number, &Operation::default());
        }
        rule.to.iter().for_each(|operation| self.add_operation(number, operation));
    }

    /// Files an entry under the most telling of its fields that names its values exactly.
    fn add_source(&mut self, number: u32, source: &Source) {
        let principals = exact(source.principals.iter().map(|p| p.pattern()));
        let accounts = exact(source.service_accounts.iter().map(|p| p.pattern()));
        let namespaces = exact(source.namespaces.iter().map(|p| p.pattern()));
        let (map, names) = match (principals, accounts, namespaces) {
            (Some(names), ..) => (&mut self.principals, names),
            (_, Some(names), _) => (&mut self.accounts, names),
            (_, _, Some(names)) => (&mut self.namespaces, names),
            (None, None, None) => return self.any_caller.add(number),
        };
        add_names(map, names, number);
    }

    fn add_operation(&mut self, number: u32, operation: &Operation) {
        match exact(operation.methods.iter().map(|p| p.pattern())) {
            Some(names) => add_names(&mut self.methods, names, number),
            None => self.any_method.add(number),
        }
        match exact(operation.hosts.iter().map(|p| p.pattern())) {
            Some(names) => add_names(&mut self.hosts, names, number),
            None => self.any_host.add(number),
        }
        if operation.ports.is_empty() {
            self.any_port.add(number);
        }
        operation.ports.iter().for_each(|port| self.ports.entry(*port).or_default().add(number));
        if operation.paths.is_empty() {
            self.any_path.add(number);
        }
        operation.paths.iter().for_each(|path| self.paths.add(path, number));
    }

    fn seal(&mut self) {
        let total = self.total;
        let maps = [&mut self.principals, &mut self.accounts, &mut self.namespaces, &mut self.methods, &mut self.hosts];
        maps.into_iter().flat_map(|map| map.values_mut()).for_each(|posting| posting.seal(total));
        self.ports.values_mut().for_each(|posting| posting.seal(total));
        [&mut self.any_caller, &mut self.any_path, &mut self.any_method, &mut self.any_host, &mut self.any_port]
            .into_iter()
            .for_each(|posting| posting.seal(total));
        self.paths.seal(total);
    }

    /// Calls `each` with the number of every rule that may hold, in ascending order, until it breaks.
    pub(super) fn candidates(
        &self,
        facts: &Facts<'_>,
        reading: Reading,
        each: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if self.total == 0 {
            return ControlFlow::Continue(());
        }
        let mut dimensions: SmallVec<[Union<'_>; 5]> = SmallVec::new();
        self.narrow(facts, reading, &mut dimensions);
        intersect(&dimensions, self.total, each)
    }

    fn narrow<'i>(&'i self, facts: &Facts<'_>, reading: Reading, dimensions: &mut SmallVec<[Union<'i>; 5]>) {
        let mut few = false;
        let mut consider = |any: &'i Posting, fill: &dyn Fn(&mut Union<'i>)| {
            // where no rule cares there is nothing to learn, and where few are left it is quicker to ask them
            if any.len() < self.total && !few {
                let mut union = Union::default();
                union.add(any);
                fill(&mut union);
                few = union.is_few();
                dimensions.push(union);
            }
        };
        consider(&self.any_caller, &|union| {
            find(&self.principals, facts.call.source.map(|id| id.as_str()), union);
            find(&self.accounts, facts.account, union);
            find(&self.namespaces, facts.namespace, union);
        });
        consider(&self.any_port, &|union| self.ports.get(&facts.call.port).into_iter().for_each(|posting| union.add(posting)));
        // a deny also holds where the attribute is missing, so there every rule stays in the race
        let told = |attribute: Option<&str>| reading == Reading::Every || attribute.is_some();
        let method = facts.call.http.map(|http| http.method);
        if told(method) {
            consider(&self.any_method, &|union| find(&self.methods, method, union));
        }
        let host = facts.host();
        if told(host) {
            consider(&self.any_host, &|union| find(&self.hosts, host, union));
        }
        if told(facts.forms.as_ref().map(|forms| forms.canonical())) {
            consider(&self.any_path, &|union| {
                let Some(forms) = &facts.forms else { return };
                match reading {
                    // every form must match, so the first tells enough
                    Reading::Every => self.paths.find(forms.canonical(), union),
                    Reading::Some => {
                        forms.all(|form| {
                            self.paths.find(form, union);
                            true
                        });
                    }
                }
            });
        }
    }
}

/// The names, if there are some and all are spelled out.
fn exact<'p>(patterns: impl Iterator<Item = &'p Pattern>) -> Option<Vec<&'p str>> {
    let names: Option<Vec<&str>> = patterns
        .map(|pattern| match pattern {
            Pattern::Exact(name) => Some(&**name),
            _ => None,
        })
        .collect();
    names.filter(|names| !names.is_empty())
}

fn add_names(map: &mut NameMap<Box<str>, Posting>, names: Vec<&str>, number: u32) {
    for name in names {
        match map.get_mut(name) {
            Some(posting) => posting.add(number),
            None => map.entry(name.into()).or_default().add(number),
        }
    }
}

fn find<'i>(map: &'i NameMap<Box<str>, Posting>, name: Option<&str>, union: &mut Union<'i>) {
    if let Some(posting) = name.and_then(|name| map.get(name)) {
        union.add(posting);
    }
}
