//! The compiled index against a naive reference, and what must hold for all policies.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop at what it did not expect")]

mod support;

use outrider_policy::{Compiled, Effect, ServicePolicy, StoredPolicy, compile};
use serde_json::Value;
use support::dice::Dice;
use support::{reference, stored, target};

fn read(policy: &Value) -> StoredPolicy {
    stored(ServicePolicy::from_json(&policy.to_string()).unwrap())
}

fn compiled(policies: &[Value]) -> Compiled {
    let policies: Vec<StoredPolicy> = policies.iter().map(read).collect();
    compile(&policies, &target()).unwrap()
}

/// Decides random calls by the policies of these seeds, in both ways; counts decisions by no rule, by a deny, by an allow.
fn compare(seeds: std::ops::Range<u64>) -> [usize; 3] {
    let mut verdicts = [0usize; 3];
    for seed in seeds {
        let mut dice = Dice::new(seed + 1);
        // most sets are small, some fill several chunks of the index
        let rules = match seed {
            seed if seed % 1000 == 0 => 5000,
            seed if seed % 100 == 0 => 200,
            _ => 1 + dice.below(9),
        };
        let few = 1 + dice.below(4);
        let policies = [dice.policy("one", rules), dice.policy("two", few)];
        let compiled = compiled(&policies);
        let calls = if rules > 1000 { 8 } else { 51 };
        for _ in 0..calls {
            let request = dice.request();
            let (allowed, rule) = reference::decide(&policies, &request);
            let (effect, name) = request.decide(&compiled);
            assert_eq!(
                (effect == Effect::Allow, &name),
                (allowed, &rule),
                "seed {seed}: {:?} {:?} by {policies:#?}",
                request.call(),
                request.headers
            );
            verdicts[usize::from(allowed) + usize::from(rule.is_some())] += 1;
        }
    }
    verdicts
}

#[test]
fn a_hundred_thousand_random_decisions_are_those_of_the_reference() {
    let verdicts = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|part| scope.spawn(move || compare(part * 500..(part + 1) * 500))).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .fold([0; 3], |sum, part| [sum[0] + part[0], sum[1] + part[1], sum[2] + part[2]])
    });
    assert!(verdicts.iter().sum::<usize>() >= 100_000, "{verdicts:?}");
    assert!(verdicts.iter().all(|count| *count > 4_000), "the world is lopsided: {verdicts:?}");
}

#[test]
fn the_order_of_rules_and_policies_changes_nothing() {
    for seed in 0..300u64 {
        let mut dice = Dice::new(seed + 10_000);
        let rules = 1 + dice.below(30);
        let mut policies = vec![dice.policy("one", rules), dice.policy("two", 5)];
        let before = compiled(&policies);
        policies.reverse();
        for policy in &mut policies {
            policy["spec"]["authorization"]["rules"].as_array_mut().unwrap().reverse();
        }
        let after = compiled(&policies);
        for _ in 0..20 {
            let request = dice.request();
            assert_eq!(request.decide(&before), request.decide(&after), "seed {seed}");
        }
    }
}

#[test]
fn adding_a_deny_never_allows_and_removing_an_allow_never_allows() {
    for seed in 0..300u64 {
        let mut dice = Dice::new(seed + 20_000);
        let policy = dice.policy("one", 12);
        let mut stricter = policy.clone();
        let mut more = dice.rule(99_999);
        more["action"] = "Deny".into();
        let rules = stricter["spec"]["authorization"]["rules"].as_array_mut().unwrap();
        rules.push(more);
        if let Some(allow) = rules.iter().position(|rule| rule["action"] == "Allow") {
            rules.remove(allow);
        }
        let (before, after) = (compiled(&[policy]), compiled(&[stricter]));
        for _ in 0..20 {
            let request = dice.request();
            let allowed = |compiled| request.decide(compiled).0 == Effect::Allow;
            assert!(allowed(&before) || !allowed(&after), "seed {seed}");
        }
    }
}

#[test]
fn an_explanation_has_the_verdict_of_the_decision_and_no_near_miss_that_holds() {
    for seed in 0..200u64 {
        let mut dice = Dice::new(seed + 30_000);
        let compiled = compiled(&[dice.policy("one", 15)]);
        for _ in 0..20 {
            let request = dice.request();
            let explanation = compiled.explain(&request.call());
            assert_eq!((explanation.effect, explanation.rule.clone()), request.decide(&compiled), "seed {seed}");
            assert!(
                explanation
                    .near_misses
                    .iter()
                    .all(|miss| Some(&miss.rule) != explanation.rule.as_ref() && !miss.failed.is_empty()),
                "seed {seed}"
            );
            assert!(explanation.near_misses.windows(2).all(|pair| pair[0].held >= pair[1].held), "seed {seed}");
        }
    }
}

#[test]
fn ten_thousand_rules_compile_and_a_policy_survives_json_and_yaml() {
    let mut dice = Dice::new(7);
    let policy = dice.policy("big", 10_000);
    assert_eq!(compiled(std::slice::from_ref(&policy)).rules().count(), 10_000);
    let small = ServicePolicy::from_json(&dice.policy("small", 50).to_string()).unwrap();
    let yaml = serde_saphyr::to_string(&small).unwrap();
    let (manifests, diagnostics) = outrider_policy::manifest::parse("p.yaml", &yaml);
    assert!(diagnostics.is_empty(), "{diagnostics:#?}");
    assert_eq!(*manifests[0].policy, small);
}
